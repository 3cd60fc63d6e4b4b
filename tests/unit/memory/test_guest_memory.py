"""The guest physical address space: bounds, region boundaries, sparse regions, listeners."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivmm.errors import GuestAddressError
from minivmm.memory.guest import GuestMemory, Slot
from minivmm.memory.region import Region
from minivmm.spec.record import Record, record, u16, u64
from minivmm.testing.sparse import FakeOccupancy
from minivmm.units import GIB, MIB

LOW, NEXT, HIGH = 0, 2 * MIB, 4 * GIB


@record
class Sample(Record):
    """Something with a size."""

    first: int = u16()
    second: int = u64()


@pytest.fixture(scope="module")
def memory() -> Iterator[GuestMemory]:
    """Two adjacent regions at 0, and one at 4 GiB."""
    memory = GuestMemory()
    memory.add(HIGH, Region(2 * MIB), name="high")
    memory.add(LOW, Region(2 * MIB), name="low")
    memory.add(NEXT, Region(2 * MIB), name="next")
    yield memory
    memory.close()


def test_view_is_writable_and_not_a_copy(memory: GuestMemory) -> None:
    memory.view(HIGH + 16, 2)[:] = b"hi"

    assert memory.read(HIGH + 16, 2) == b"hi"


@pytest.mark.parametrize(
    ("gpa", "length"),
    [
        (-1, 1),
        (-1, 2),
        (4 * MIB, 1),
        (4 * MIB - 1, 2),
        (HIGH - 1, 1),
        (HIGH - 1, 2),
        (HIGH + 2 * MIB - 1, 2),
        (HIGH + 2 * MIB, 1),
        (HIGH, 1 << 64),
        ((1 << 64) - 1, 2),
    ],
)
def test_bytes_outside_ram_are_refused(memory: GuestMemory, gpa: int, length: int) -> None:
    for access in (memory.view, memory.read, memory.check):
        with pytest.raises(GuestAddressError, match="not in guest RAM"):
            access(gpa, length)
    if length < 16:
        with pytest.raises(GuestAddressError, match="not in guest RAM"):
            memory.write(gpa, bytes(length))


def test_negative_length_is_refused(memory: GuestMemory) -> None:
    with pytest.raises(GuestAddressError):
        memory.view(HIGH, -1)


def test_view_does_not_cross_regions(memory: GuestMemory) -> None:
    with pytest.raises(GuestAddressError):
        memory.view(NEXT - 1, 2)


def test_read_and_write_cross_adjacent_regions(memory: GuestMemory) -> None:
    memory.write(NEXT - 2, b"abcd")

    assert memory.read(NEXT - 2, 4) == b"abcd"
    assert memory.read(NEXT, 2) == b"cd"
    memory.check(NEXT - 2, 4)


def test_write_that_leaves_ram_writes_nothing(memory: GuestMemory) -> None:
    memory.write(4 * MIB - 2, b"..")

    with pytest.raises(GuestAddressError):
        memory.write(4 * MIB - 2, b"abcd")

    assert memory.read(4 * MIB - 2, 2) == b".."


def test_nothing_can_be_read_anywhere(memory: GuestMemory) -> None:
    assert memory.read(GIB, 0) == b""


def test_records_are_stored_and_loaded(memory: GuestMemory) -> None:
    memory.store(NEXT - 5, Sample(first=0x1234, second=1 << 63))

    assert memory.load(NEXT - 5, Sample) == Sample(first=0x1234, second=1 << 63)


def test_error_names_address_and_length_in_hex(memory: GuestMemory) -> None:
    with pytest.raises(GuestAddressError, match=r"0x100200000\+0x10") as caught:
        memory.view(HIGH + 2 * MIB, 16)

    assert (caught.value.gpa, caught.value.length) == (HIGH + 2 * MIB, 16)


@pytest.mark.parametrize("gpa", [0, MIB, 3 * MIB])
def test_overlapping_region_is_a_programming_error(memory: GuestMemory, gpa: int) -> None:
    region = Region(2 * MIB)

    with pytest.raises(ValueError, match="overlaps"):
        memory.add(gpa, region, name="other")

    region.close()


def test_slots_are_listed_by_address(memory: GuestMemory) -> None:
    assert [slot.name for slot in memory.slots] == ["low", "next", "high"]
    assert list(memory.inspect()) == ["0x0", "0x200000", "0x100000000"]


class Recorder:
    """A listener; refuses to plug while `full`, and to unplug while it `holds`."""

    def __init__(self, name: str, heard: list[tuple[str, str, int, int]]) -> None:
        self.name = name
        self.full = self.holds = False
        self.heard = heard

    def on_map(self, slot: Slot) -> None:
        self.heard.append((self.name, f"map {slot.name}", 0, slot.region.size))

    def on_plug(self, slot: Slot, offset: int, length: int) -> None:
        if self.full:
            raise OSError("no room")
        self.heard.append((self.name, "plug", offset, length))

    def on_unplug(self, slot: Slot, offset: int, length: int) -> None:
        if self.holds:
            raise OSError("in use")
        self.heard.append((self.name, "unplug", offset, length))

    def on_readable(self, slot: Slot) -> None:
        assert slot.occupancy
        self.heard.append((self.name, "readable", 0, slot.occupancy.readable))


def test_listener_hears_of_present_and_future_regions() -> None:
    memory, heard = GuestMemory(), list[tuple[str, str, int, int]]()
    memory.add(0, Region(4096), name="early")

    memory.subscribe(Recorder("one", heard))
    memory.add(MIB, Region(4096), name="late")

    assert heard == [("one", "map early", 0, 4096), ("one", "map late", 0, 4096)]
    memory.close()


def test_a_late_listener_is_told_what_is_plugged() -> None:
    memory, heard = GuestMemory(), list[tuple[str, str, int, int]]()
    occupancy = FakeOccupancy((0, 4096), (8192, 4096))
    occupancy.readable = 8192
    memory.add(0, Region(MIB), name="vmem0", occupancy=occupancy)

    memory.subscribe(Recorder("one", heard))

    assert heard == [
        ("one", "map vmem0", 0, MIB),
        ("one", "plug", 0, 4096),
        ("one", "plug", 8192, 4096),
        ("one", "readable", 0, 8192),
    ]
    memory.close()


def test_listeners_that_said_yes_are_told_back_when_a_later_one_refuses() -> None:
    memory, heard = GuestMemory(), list[tuple[str, str, int, int]]()
    slot = memory.add(0, Region(MIB), name="vmem0", occupancy=FakeOccupancy())
    first, second, third = (Recorder(name, heard) for name in ("one", "two", "three"))
    for listener in (first, second, third):
        memory.subscribe(listener)
    heard.clear()
    third.full = True

    with pytest.raises(OSError, match="no room"):
        memory.plug(slot, 4096, 8192)

    assert heard == [
        ("one", "plug", 4096, 8192),
        ("two", "plug", 4096, 8192),
        ("two", "unplug", 4096, 8192),
        ("one", "unplug", 4096, 8192),
    ]
    memory.close()


def test_unplugging_is_told_in_reverse() -> None:
    memory, heard = GuestMemory(), list[tuple[str, str, int, int]]()
    slot = memory.add(0, Region(MIB), name="vmem0", occupancy=FakeOccupancy())
    for name in ("one", "two"):
        memory.subscribe(Recorder(name, heard))
    heard.clear()

    memory.plug(slot, 0, 4096)
    memory.unplug(slot, 0, 4096)
    memory.readable_changed(slot)

    assert [event[:2] for event in heard] == [
        ("one", "plug"),
        ("two", "plug"),
        ("two", "unplug"),
        ("one", "unplug"),
        ("one", "readable"),
        ("two", "readable"),
    ]
    memory.close()


def test_those_who_pin_are_told_apart_from_the_others() -> None:
    memory, heard = GuestMemory(), list[tuple[str, str, int, int]]()
    slot = memory.add(0, Region(MIB), name="vmem0", occupancy=FakeOccupancy())
    memory.subscribe(Recorder("pins", heard), pins=True)
    memory.subscribe(Recorder("looks", heard))
    heard.clear()

    memory.pin(slot, 0, 4096)
    memory.plug(slot, 0, 4096)
    memory.unplug(slot, 0, 4096)
    memory.unpin(slot, 0, 4096)
    memory.readable_changed(slot)

    assert [event[:2] for event in heard] == [
        ("pins", "plug"),
        ("looks", "plug"),
        ("looks", "unplug"),
        ("pins", "unplug"),
        ("looks", "readable"),
        ("pins", "readable"),
    ]
    memory.close()


def test_all_who_pin_hold_on_when_one_does() -> None:
    memory, heard = GuestMemory(), list[tuple[str, str, int, int]]()
    slot = memory.add(0, Region(MIB), name="vmem0", occupancy=FakeOccupancy())
    first, second = (Recorder(name, heard) for name in ("one", "two"))
    for listener in (first, second):
        memory.subscribe(listener, pins=True)
    memory.pin(slot, 0, 4096)
    heard.clear()
    first.holds = True

    with pytest.raises(OSError, match="in use"):
        memory.unpin(slot, 0, 4096)

    assert [event[:2] for event in heard] == [("two", "unplug"), ("two", "plug")]
    memory.close()


def test_memory_is_pinned_once_somebody_pins() -> None:
    memory = GuestMemory()
    assert not memory.pinned

    memory.subscribe(Recorder("looks", []))
    assert not memory.pinned

    memory.subscribe(Recorder("pins", []), pins=True)
    assert memory.pinned


def test_only_plugged_bytes_of_a_sparse_region_are_ram() -> None:
    memory = GuestMemory()
    memory.add(HIGH, Region(2 * MIB), name="vmem0", occupancy=FakeOccupancy((MIB, MIB)))

    memory.write(HIGH + MIB, b"x")

    for access in (memory.view, memory.read, memory.check):
        with pytest.raises(GuestAddressError, match="unplugged memory of vmem0"):
            access(HIGH + MIB - 1, 2)
    memory.close()


def test_closed_memory_has_no_ram() -> None:
    memory = GuestMemory()
    memory.add(0, Region(4096), name="ram")
    memory.close()

    with pytest.raises(GuestAddressError):
        memory.read(0, 1)


def test_region_is_found_again_after_many_were_added() -> None:
    memory = GuestMemory()
    for number in reversed(range(16)):
        memory.add(number * MIB, Region(4096), name=str(number))
        memory.write(number * MIB, bytes([number]))

    assert [memory.read(number * MIB, 1)[0] for number in range(16)] == list(range(16))
    memory.close()


@given(gpa=st.integers(-4, 4 * MIB + 4), data=st.binary(min_size=1, max_size=16))
def test_write_either_reads_back_or_is_refused(memory: GuestMemory, gpa: int, data: bytes) -> None:
    inside = gpa >= 0 and gpa + len(data) <= 4 * MIB
    try:
        memory.write(gpa, data)
    except GuestAddressError:
        assert not inside
    else:
        assert inside
        assert memory.read(gpa, len(data)) == data
