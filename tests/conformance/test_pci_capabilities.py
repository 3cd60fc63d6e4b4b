"""What every device of ours announces in its configuration space, read as a driver's author would.

The bytes are parsed here once more, so that nothing of the device's own tables is believed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest

from minivmm.testing.conversations import Kind
from minivmm.testing.driver import DeviceBench

VENDOR, MSIX = 0x09, 0x11
COMMON, NOTIFY, ISR, DEVICE, PCI, SHARED_MEMORY, VENDOR_DATA = 1, 2, 3, 4, 5, 8, 9
LENGTHS = {COMMON: 16, NOTIFY: 20, ISR: 16, DEVICE: 16, PCI: 20}
"""Bytes of a capability of each kind, with what follows the common part (reference B.2)."""

NOTIFICATION_DATA = 38
CONFIG_SIZES = {"mem": 56, "console": 12, "rng": 0, "balloon": 16, "blk": 60}
OPTIONS = {
    "plain": {},
    "told": {"notification_data": True, "notif_config_data": True},
    "pins": {"vectors": 0},
    "all": {"notification_data": True, "packed": True, "flr": True, "vectors": 128},
}


@dataclass(frozen=True)
class Capability:
    """`body` are its bytes, as many as fit before the next one or the end."""

    at: int
    id: int
    body: bytes

    def number(self, offset: int, size: int) -> int:
        return int.from_bytes(self.body[offset : offset + size], "little")

    @property
    def length(self) -> int:
        return self.body[2]

    @property
    def kind(self) -> int:
        return self.body[3] if self.id == VENDOR else 0


@dataclass(frozen=True)
class Place:
    """A structure in a BAR, in bytes."""

    bar: int
    offset: int
    length: int


class Announced:
    """The capabilities of one device."""

    def __init__(self, bench: DeviceBench) -> None:
        self.bench = bench
        config = bytes(bench.driver.read_pci(at, 1) for at in range(256))
        offsets, at = list[int](), config[0x34]
        while at:
            assert at not in offsets and 0x40 <= at < 256 and at % 4 == 0
            offsets.append(at)
            at = config[at + 1]
        ends = [*sorted(offsets)[1:], 256]
        limits = dict(zip(sorted(offsets), ends, strict=True))
        self.all = [Capability(at, config[at], config[at : limits[at]]) for at in offsets]
        self.virtio = [one for one in self.all if one.id == VENDOR]

    def one(self, kind: int) -> Capability:
        (found,) = (one for one in self.virtio if one.kind == kind)
        return found

    def place(self, kind: int) -> Place:
        found = self.one(kind)
        return Place(found.body[4], found.number(8, 4), found.number(12, 4))

    def bar_size(self, index: int) -> int:
        """By the protocol of PCI 6.2.5.1: write ones, see which stay zero."""
        driver, at = self.bench.driver, 0x10 + 4 * index
        low, high = driver.read_pci(at, 4), driver.read_pci(at + 4, 4)
        driver.write_pci(at, 4, 0xFFFF_FFFF)
        size = driver.read_pci(at, 4) & ~0xF
        driver.write_pci(at, 4, low)
        assert driver.read_pci(at + 4, 4) == high
        return -size & 0xFFFF_FFFF

    def doorbells(self) -> Iterator[int]:
        """queue_notify_off of each queue."""
        driver = self.bench.driver.probe()
        for index in range(driver.get("num_queues")):
            driver.set("queue_select", index)
            yield driver.get("queue_notify_off")


@pytest.fixture(params=CONFIG_SIZES)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(params=OPTIONS)
def announced(
    name: str, request: pytest.FixtureRequest, device_kinds: dict[str, Kind]
) -> Iterator[Announced]:
    device = device_kinds[name].make(**OPTIONS[request.param])
    with DeviceBench(device) as bench:
        yield Announced(bench)
    device.close()


@pytest.mark.rule("PCI-D-7", "PCI-D-19")
def test_every_structure_is_announced_and_the_configuration_if_there_is_one(
    announced: Announced, name: str
) -> None:
    wanted = {COMMON, NOTIFY, ISR, PCI} | ({DEVICE} if CONFIG_SIZES[name] else set())

    assert {one.kind for one in announced.virtio} == wanted
    assert announced.place(ISR).length >= 1
    assert announced.place(COMMON).length >= 64
    if CONFIG_SIZES[name]:
        assert announced.place(DEVICE).length >= CONFIG_SIZES[name]


@pytest.mark.rule("PCI-D-6")
def test_there_is_one_of_each_so_the_first_is_the_best(announced: Announced) -> None:
    kinds = [one.kind for one in announced.virtio]

    assert len(kinds) == len(set(kinds))


@pytest.mark.rule("PCI-D-5")
def test_a_capability_is_as_long_as_it_says_and_none_lies_in_another(announced: Announced) -> None:
    for one in announced.virtio:
        assert one.length == LENGTHS[one.kind]
        assert one.length <= len(one.body)


@pytest.mark.rule("PCI-D-24", "PCI-D-25")
def test_neither_shared_memory_nor_vendor_data_is_announced(announced: Announced) -> None:
    """Without any, what is demanded of them holds."""
    assert not {SHARED_MEMORY, VENDOR_DATA} & {one.kind for one in announced.virtio}


@pytest.mark.rule("PCI-D-8", "PCI-D-23")
def test_structures_are_aligned_inside_their_bar_and_apart(announced: Announced, name: str) -> None:
    kinds = [COMMON, NOTIFY, ISR, *([DEVICE] if CONFIG_SIZES[name] else [])]
    places = sorted((announced.place(kind) for kind in kinds), key=lambda place: place.offset)

    assert announced.place(COMMON).offset % 4 == 0
    if CONFIG_SIZES[name]:
        assert announced.place(DEVICE).offset % 4 == 0
    assert {place.bar for place in places} == {0}
    for place, after in pairwise(places):
        assert place.offset + place.length <= after.offset
    assert places[-1].offset + places[-1].length <= announced.bar_size(0)


@pytest.mark.rule("PCI-D-17", "PCI-D-18")
def test_every_doorbell_lies_in_the_notification_area(announced: Announced) -> None:
    place, multiplier = announced.place(NOTIFY), announced.one(NOTIFY).number(16, 4)
    offered = announced.bench.driver.probe().offered_features()
    width = 4 if offered >> NOTIFICATION_DATA & 1 else 2
    offsets = list(announced.doorbells())

    assert place.offset % width == 0
    assert multiplier.bit_count() <= 1
    assert multiplier % width == 0
    assert all(place.length >= offset * multiplier + width for offset in offsets)
    assert len({offset * multiplier for offset in offsets}) == len(offsets)


@pytest.mark.rule("PCI-D-2", "PCI-D-3")
def test_identity_is_that_of_a_device_that_is_not_transitional(
    announced: Announced, name: str
) -> None:
    types = {"mem": 24, "console": 3, "rng": 4, "balloon": 5, "blk": 2}
    driver = announced.bench.driver

    assert driver.read_pci(0, 4) == (0x1040 + types[name]) << 16 | 0x1AF4
    assert driver.read_pci(8, 1) >= 1
    assert driver.read_pci(0x2E, 2) >= 0x40


@pytest.mark.rule("PCI-D-27")
def test_the_vector_table_has_the_size_that_it_tells(announced: Announced) -> None:
    """Table and pending bits lie in their BAR, apart and aligned (PCI 6.8.2)."""
    found = [one for one in announced.all if one.id == MSIX]
    wanted = announced.bench.device.options.vectors
    if wanted == 0:
        assert found == []
        return
    count = (found[0].number(2, 2) & 0x7FF) + 1
    table, pending = found[0].number(4, 4), found[0].number(8, 4)

    assert 2 <= count <= 0x800
    assert wanted in (None, count)
    assert table & 7 == pending & 7 == 2
    table, pending = table & ~7, pending & ~7
    assert table + 16 * count <= pending
    assert pending + -(-count // 64) * 8 <= announced.bar_size(2)
    driver = announced.bench.driver.probe()
    base = driver.bar_address(2)
    mmio = announced.bench.mmio
    assert {mmio.read(base + table + 16 * n + 12, 4) for n in range(count)} == {1}
    mmio.write(base + table + 16 * count + 8, 4, 0x1234)
    assert mmio.read(base + table + 16 * count + 8, 4) == 0
