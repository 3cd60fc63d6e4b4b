"""virtio-mem as a guest sees it: by PCI, rings in guest memory and interrupts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.errors import GuestAddressError
from minivmm.spec.virtio import Descriptor, DescriptorFlags, DeviceStatus
from minivmm.spec.virtio_mem import (
    BlockState,
    Feature,
    MemConfig,
    MemRequest,
    RequestType,
    ResponseType,
)
from minivmm.spec.virtio_pci import CapabilityType
from minivmm.testing.driver import DeviceBench
from minivmm.testing.mem_bench import make_device
from minivmm.testing.mem_driver import MemDriver, by_queue
from minivmm.units import GIB, MIB

VERSION_1 = 1 << 32
INDIRECT = 1 << 28
BLOCK = 2 * MIB
CONFIG_VECTOR, QUEUE_VECTOR = 0, 1
ACK = ResponseType.ACK


def make(**fields: str) -> VirtioMem:
    return make_device(size=GIB, requested_size=64 * MIB, **fields)


@pytest.fixture
def device() -> VirtioMem:
    return make()


@pytest.fixture
def bench(device: VirtioMem) -> Iterator[DeviceBench]:
    with DeviceBench(device) as bench:
        bench.driver.start()
        yield bench


@pytest.fixture
def driver(bench: DeviceBench, device: VirtioMem) -> MemDriver:
    return MemDriver(device, by_queue(bench.driver))


def plug_request(device: VirtioMem, block: int, count: int) -> bytes:
    addr = device.window.base + block * BLOCK
    return MemRequest(type=RequestType.PLUG, addr=addr, nb_blocks=count).build()


def is_broken(bench: DeviceBench) -> bool:
    return DeviceStatus.NEEDS_RESET in bench.driver.status


def test_function_is_a_modern_memory_device(bench: DeviceBench) -> None:
    assert bench.driver.read_pci(0, 2) == 0x1AF4
    assert bench.driver.read_pci(2, 2) == 0x1058
    assert bench.driver.get("num_queues") == 1


def test_request_goes_by_ring_and_comes_back_with_one_interrupt(
    bench: DeviceBench, device: VirtioMem
) -> None:
    done = bench.driver.submit(0, plug_request(device, 0, 4), writable=(10,))

    assert [(used.written, used.data) for used in done] == [(10, bytes(10))]
    assert bench.irq.take() == [QUEUE_VECTOR]
    assert device.plugged_size == 4 * BLOCK


def test_all_requests_by_ring(driver: MemDriver) -> None:
    assert driver.plug(0, 8) is ACK
    assert driver.unplug(3) is ACK
    assert driver.state(0, 8) is BlockState.MIXED
    assert driver.unplug_all() is ACK
    assert driver.state(0, 8) is BlockState.UNPLUGGED


@pytest.mark.rule("SPL-D-1")
def test_request_and_answer_in_single_bytes(bench: DeviceBench, device: VirtioMem) -> None:
    """SPL-D-1: 24 descriptors of one byte each, and 10 for the answer."""
    request = plug_request(device, 7, 2)

    done = bench.driver.submit(0, *(bytes([byte]) for byte in request), writable=(1,) * 10)

    assert [(used.written, used.data) for used in done] == [(10, bytes(10))]
    assert list(device.blocks.plugged_ranges()) == [(7, 2)]


@pytest.mark.parametrize("direct", [0, 1, 12])
def test_request_in_an_indirect_table_or_its_tail(
    bench: DeviceBench, device: VirtioMem, direct: int
) -> None:
    ring = bench.driver.queues[0]
    request = plug_request(device, 7, 2)
    if direct and not bench.driver.features & INDIRECT:
        pytest.skip("no indirect descriptors")

    ring.add([bytes([byte]) for byte in request], (4, 6), direct=direct)
    bench.driver.kick(0)

    assert [used.written for used in ring.collect()] == [10]
    assert device.plugged_size == 2 * BLOCK


def test_answer_goes_to_the_start_of_a_larger_buffer(bench: DeviceBench, device: VirtioMem) -> None:
    request = MemRequest(type=RequestType.STATE, addr=device.window.base, nb_blocks=1).build()

    (used,) = bench.driver.submit(0, request + bytes(8), writable=(64,))

    assert used.written == 10
    assert used.buffer == bytes([0, 0, 0, 0, 0, 0, 0, 0, 1, 0]) + bytes(54)


@pytest.mark.parametrize(("readable", "writable"), [(23, 10), (24, 9), (24, 0), (0, 10)])
def test_short_buffers_need_a_reset_and_reset_heals(
    bench: DeviceBench, device: VirtioMem, driver: MemDriver, readable: int, writable: int
) -> None:
    driver.plug(0, 4)
    request = plug_request(device, 8, 1)[:readable]

    done = bench.driver.submit(
        0, *([request] if request else []), writable=(writable,) if writable else ()
    )

    assert done == []
    assert is_broken(bench)
    assert device.plugged_size == 4 * BLOCK

    bench.driver.start()
    assert not is_broken(bench)
    assert driver.state(0, 4) is BlockState.PLUGGED


@pytest.mark.rule("MEM-D-9", "PCI-D-11")
def test_new_target_interrupts_and_can_be_read(bench: DeviceBench, device: VirtioMem) -> None:
    generation = bench.driver.get("config_generation")

    device.set_requested_size(512 * MIB)

    assert bench.irq.take() == [CONFIG_VECTOR]
    assert bench.driver.get("config_generation") != generation
    assert MemConfig.parse(bench.driver.read_config(56)).requested_size == 512 * MIB


@pytest.mark.rule("MEM-D-10", "PCI-D-11")
def test_plugging_moves_the_generation_without_an_interrupt(
    bench: DeviceBench, driver: MemDriver
) -> None:
    """MEM-D-10; a driver that reads plugged_size in halves must notice."""
    generation = bench.driver.get("config_generation")

    driver.plug(0, 4)

    assert bench.irq.take() == [QUEUE_VECTOR]
    assert bench.driver.get("config_generation") != generation
    assert MemConfig.parse(bench.driver.read_config(56)).plugged_size == 4 * BLOCK


def test_config_fields_can_be_read_in_any_width(bench: DeviceBench, device: VirtioMem) -> None:
    def read(offset: int, size: int) -> int:
        return bench.driver.read(CapabilityType.DEVICE, offset, size)

    assert read(16, 4) | read(20, 4) << 32 == 4 * GIB
    assert read(20, 2) == 1
    assert read(20, 1) == 1
    assert read(48, 4) == 64 * MIB


def test_config_space_ignores_writes(bench: DeviceBench) -> None:
    before = bench.driver.read_config(56)

    bench.driver.write(CapabilityType.DEVICE, 48, 4, 0xFFFF_FFFF)

    assert bench.driver.read_config(56) == before


def test_features_offered_by_default(bench: DeviceBench) -> None:
    offered = bench.driver.features

    assert offered & VERSION_1
    assert offered & 0xFF_FFFF == Feature.ACPI_PXM | Feature.UNPLUGGED_INACCESSIBLE


@pytest.mark.rule("MEM-D-12")
@pytest.mark.parametrize(
    "fields",
    [{"unplugged_inaccessible": "on"}, {"backing": "memfd"}, {"backing": "hugetlb"}],
)
def test_insisting_device_refuses_features_ok(fields: dict[str, str]) -> None:
    """MEM-D-12; auto insists where reading allocates (A.8-15). A second try with it is fine."""
    with DeviceBench(make(**fields)) as strict:
        strict.driver.probe()
        strict.driver.reset()

        assert not strict.driver.negotiate(VERSION_1 | Feature.ACPI_PXM)

        strict.driver.reset()
        assert strict.driver.negotiate(VERSION_1 | Feature.UNPLUGGED_INACCESSIBLE)


@pytest.mark.parametrize("setting", ["auto", "off"])
def test_old_driver_can_use_a_device_that_does_not_insist(setting: str) -> None:
    device = make(unplugged_inaccessible=setting)
    with DeviceBench(device) as bench:
        bench.driver.start(VERSION_1)

        assert bench.driver.request(0, plug_request(device, 0, 1), 10) == bytes(10)


@pytest.mark.rule("MEM-D-13", "MEM-D-14")
def test_device_reset_keeps_blocks_content_and_sizes(
    bench: DeviceBench, device: VirtioMem, driver: MemDriver
) -> None:
    """MEM-D-13, MEM-D-14; the queue then works at other addresses, with other features."""
    driver.plug(0, 8)
    bench.memory.write(driver.address(7), b"precious")
    config = driver.config()
    old_ring = bench.driver.queues[0].layout

    bench.driver.start(VERSION_1, size=64)

    assert bench.driver.queues[0].layout.descriptors != old_ring.descriptors
    assert driver.config() == config
    assert driver.state(0, 8) is BlockState.PLUGGED
    assert bench.memory.read(driver.address(7), 8) == b"precious"
    assert driver.unplug_all() is ACK


@pytest.mark.rule("MEM-D-21", "MEM-D-22")
def test_system_reset_unplugs(bench: DeviceBench, device: VirtioMem, driver: MemDriver) -> None:
    driver.plug(0, 8)
    bench.memory.write(driver.address(7), b"precious")

    bench.function.system_reset()

    assert device.plugged_size == 0
    assert device.resident() == 0
    bench.host.assign_bars()
    bench.driver.start()
    assert driver.plug(7) is ACK
    assert bench.memory.read(driver.address(7), 8) == bytes(8)


def place_queue(bench: DeviceBench, base: int) -> None:
    """Restart the driver with a queue of 2: descriptors at `base`, rings in the pages behind it."""
    bench.driver.reset()
    assert bench.driver.negotiate(VERSION_1)
    bench.driver.set("queue_select", 0)
    bench.driver.set("queue_size", 2)
    bench.driver.set("queue_desc", base)
    bench.driver.set("queue_driver", base + 4096)
    bench.driver.set("queue_device", base + 8192)
    bench.driver.set("queue_enable", 1)
    bench.driver.add_status(DeviceStatus.DRIVER_OK)


def test_ring_in_unplugged_memory_breaks_the_device_only(
    bench: DeviceBench, device: VirtioMem
) -> None:
    """Reference H-10: no ring may populate what is not plugged."""
    place_queue(bench, device.window.base)
    bench.driver.kick(0)

    assert is_broken(bench)
    assert device.resident() == 0


def test_unplugging_the_block_that_holds_the_answer(
    bench: DeviceBench, device: VirtioMem, driver: MemDriver
) -> None:
    """A driver's blunder: there is no place for the answer any more, and none is populated."""
    driver.plug(0, 2)
    ring = bench.driver.queues[0]
    addr = driver.address(1)
    request = MemRequest(type=RequestType.UNPLUG, addr=addr, nb_blocks=1).build()
    request_at = bench.allocator.take(len(request))
    bench.memory.write(request_at, request)
    ring.set_descriptor(0, request_at, len(request), DescriptorFlags.NEXT, 1)
    ring.set_descriptor(1, addr + 64, 10, DescriptorFlags.WRITE, 0)

    ring.offer(0)
    bench.driver.kick(0)

    assert is_broken(bench)
    assert device.plugged_size == BLOCK
    with pytest.raises(GuestAddressError):
        bench.memory.read(addr, 1)
    assert device.region.resident_in(BLOCK, BLOCK) == 0


def test_unplugging_the_block_that_holds_the_ring(
    bench: DeviceBench, device: VirtioMem, driver: MemDriver
) -> None:
    driver.plug(0, 2)
    base = driver.address(0)
    request = bench.allocator.take(4096)
    bench.memory.write(request, MemRequest(type=RequestType.UNPLUG_ALL).build())
    place_queue(bench, base)
    bench.memory.store(base, Descriptor(request, 24, DescriptorFlags.NEXT, 1))
    bench.memory.store(base + 16, Descriptor(request + 2048, 10, DescriptorFlags.WRITE, 0))
    bench.memory.write(base + 4096 + 2, b"\1\0")  # avail.idx 1, and ring[0] is descriptor 0

    bench.driver.kick(0)

    assert is_broken(bench)
    assert device.plugged_size == 0
    assert device.resident() == 0


def test_requests_are_traced_under_the_name_of_the_device(
    bench: DeviceBench, driver: MemDriver
) -> None:
    driver.plug(0, 4)

    (event,) = bench.events("answer")

    assert str(event) == (
        f"vmem0 answer type=PLUG gpa=0x100000000 blocks=4 size={4 * BLOCK} answer=ACK"
        f" plugged={4 * BLOCK}"
    )
