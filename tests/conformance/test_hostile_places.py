"""The hostile catalogue (reference C.7), places: where the parts of a ring are, and how large."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from minivmm.spec import platform, virtio
from minivmm.spec.virtio import DeviceStatus, Feature
from minivmm.spec.virtio_mem import RequestType
from minivmm.testing.mem_ordeal import BLOCK, REGION, MemOrdeal
from minivmm.testing.ordeal import Ordeal, Outcome
from minivmm.testing.packed_ring import PackedDriver
from minivmm.testing.ring import SplitDriver
from minivmm.units import GIB, MIB
from minivmm.virtio.queue.queue import QueueLayout

ANSWERED, IGNORED, BROKEN = Outcome.ANSWERED, Outcome.IGNORED, Outcome.BROKEN
EVENT_IDX = Feature.EVENT_IDX.mask
RAM_END = 16 * MIB
SIZE = 128


def parts_of(ordeal: Ordeal, size: int) -> dict[str, tuple[int, int]]:
    """Bytes and alignment of each part of a ring, by the name of its register."""
    if ordeal.packed:
        event = (virtio.EventSuppression.SIZE, virtio.EVENT_ALIGNMENT)
        ring = (virtio.packed_ring_size(size), virtio.PACKED_RING_ALIGNMENT)
        return {"queue_desc": ring, "queue_driver": event, "queue_device": event}
    return {
        "queue_desc": (virtio.descriptor_table_size(size), virtio.DESCRIPTOR_ALIGNMENT),
        "queue_driver": (virtio.avail_ring_size(size), virtio.AVAIL_ALIGNMENT),
        "queue_device": (virtio.used_ring_size(size), virtio.USED_ALIGNMENT),
    }


def place(ordeal: Ordeal, size: int = SIZE, **addresses: int) -> None:
    """Reset, and enable queue 0 with some of its parts at `addresses`; no DRIVER_OK yet."""
    driver = ordeal.driver
    event_idx = bool(ordeal.features & EVENT_IDX)
    kind = PackedDriver if ordeal.packed else SplitDriver
    ring = kind(ordeal.bench.memory, ordeal.bench.allocator, size, event_idx=event_idx)
    usual = ring.layout
    ring.layout = QueueLayout(
        size,
        addresses.get("queue_desc", usual.descriptors),
        addresses.get("queue_driver", usual.driver),
        addresses.get("queue_device", usual.device),
    )
    ordeal.begin()
    driver.queues[0] = ring
    driver.set("queue_size", size)
    driver.set("queue_desc", ring.layout.descriptors)
    driver.set("queue_driver", ring.layout.driver)
    driver.set("queue_device", ring.layout.device)
    driver.set("queue_msix_vector", 1)
    driver.set("queue_enable", 1)
    ordeal.follow_ring()


def driver_ok(ordeal: Ordeal) -> Callable[[], None]:
    return lambda: ordeal.driver.add_status(DeviceStatus.DRIVER_OK)


@pytest.mark.parametrize("part", ["queue_desc", "queue_driver", "queue_device"])
@pytest.mark.parametrize(
    "gpa",
    [
        pytest.param(RAM_END, id="behind-ram"),
        pytest.param(platform.ECAM_BASE, id="ecam"),
        pytest.param(0xFEE00000, id="apic"),
        pytest.param(1 << 40, id="our-own-bar"),
        pytest.param(REGION + 4 * BLOCK, id="unplugged"),
        pytest.param(REGION + GIB, id="behind-the-region"),
        pytest.param(1 << 63, id="far-away"),
        pytest.param((1 << 64) - 16, id="end-of-all"),
    ],
)
def test_part_of_the_ring_that_is_not_in_memory(ordeal: MemOrdeal, part: str, gpa: int) -> None:
    """A read-only used ring as well: there is no memory here that could be read only."""
    ordeal.plug(0, 4)
    place(ordeal, **{part: gpa})
    ordeal.check(BROKEN, "not in guest RAM|unplugged memory", act=driver_ok(ordeal))


@pytest.mark.parametrize("part", ["queue_desc", "queue_driver", "queue_device"])
@pytest.mark.parametrize("over", [0, 1])
def test_part_at_the_end_of_memory(ordeal: MemOrdeal, part: str, over: int) -> None:
    """Its last byte may be the last one there is, and no further."""
    size, alignment = parts_of(ordeal, SIZE)[part]
    last = (RAM_END - size) // alignment * alignment
    place(ordeal, **{part: last + over * alignment})
    if over:
        ordeal.check(BROKEN, "not in guest RAM", act=driver_ok(ordeal))
    else:
        ordeal.raw.offer(ordeal.question(), ordeal.room())
        ordeal.check(ANSWERED, act=driver_ok(ordeal))


@pytest.mark.parametrize("part", ["queue_desc", "queue_driver", "queue_device"])
def test_part_whose_end_is_not_plugged(ordeal: MemOrdeal, part: str) -> None:
    ordeal.plug(0, 4)
    size, alignment = parts_of(ordeal, SIZE)[part]
    end = REGION + 4 * BLOCK
    place(ordeal, **{part: (end - size) // alignment * alignment + alignment})
    ordeal.check(BROKEN, "unplugged memory of vmem0", act=driver_ok(ordeal))


@pytest.mark.parametrize("part", ["queue_desc", "queue_driver", "queue_device"])
def test_unaligned_part(ordeal: MemOrdeal, part: str) -> None:
    _, alignment = parts_of(ordeal, SIZE)[part]
    place(ordeal, **{part: 0x9000 + alignment // 2})
    ordeal.check(BROKEN, "is not aligned", act=driver_ok(ordeal))


@pytest.mark.parametrize("filler", [b"\0", b"\x81", b"\x01", b"\xff"])
def test_all_parts_in_one_place(ordeal: MemOrdeal, filler: bytes) -> None:
    """What the device writes is what the driver said; it ends somehow, and not with the host."""
    at = ordeal.put(filler * 65536, alignment=4096)
    place(ordeal, queue_desc=at, queue_driver=at, queue_device=at)
    ordeal.raw.granted += [(at, 65536), (0, 0x10000)]

    def use() -> None:
        driver_ok(ordeal)()
        ordeal.kick()

    ordeal.check(None, act=use)


@pytest.mark.parametrize("part", ["descriptors", "driver", "device"])
def test_part_that_is_unplugged_by_a_request_that_it_carries(ordeal: MemOrdeal, part: str) -> None:
    """Two requests wait: the first unplugs what the second one needs."""
    ordeal.plug(0, 4)
    register = {"descriptors": "queue_desc", "driver": "queue_driver", "device": "queue_device"}
    place(ordeal, **{register[part]: REGION})
    driver_ok(ordeal)()
    for kind in (RequestType.UNPLUG_ALL, RequestType.STATE):
        ordeal.raw.offer(ordeal.question(kind), ordeal.room())
    ordeal.check(BROKEN, "unplugged memory of vmem0", changes=True)


@pytest.mark.parametrize("size", [0, SIZE + 1, 32768, 0xFFFF])
def test_size_that_the_device_does_not_have(ordeal: MemOrdeal, size: int) -> None:
    place(ordeal, size)
    ordeal.check(BROKEN, f"queue size {size} is not", act=driver_ok(ordeal))


def test_size_that_is_no_power_of_two(ordeal: MemOrdeal) -> None:
    """Of which packed rings know nothing (PCI-D-16)."""
    place(ordeal, 100)
    if ordeal.packed:
        ordeal.raw.offer(ordeal.question(), ordeal.room())
        ordeal.check(ANSWERED, act=driver_ok(ordeal))
    else:
        ordeal.check(BROKEN, "queue size 100 is not a power of two", act=driver_ok(ordeal))


def test_queue_that_was_never_placed(ordeal: MemOrdeal) -> None:
    """Enabled with addresses of 0: that is memory, and if it is empty, so is the ring."""
    place(ordeal, queue_desc=0, queue_driver=0, queue_device=0)
    ordeal.raw.granted.append((0, 0x1000))
    ordeal.check(IGNORED, act=driver_ok(ordeal))
