"""Parts of a ring: their views are kept as long as that is right, and not longer."""

from __future__ import annotations

import pytest

from minivmm.errors import DeviceBroken
from minivmm.memory.guest import GuestMemory
from minivmm.memory.region import Region
from minivmm.testing.sparse import FakeOccupancy
from minivmm.units import GIB, MIB
from minivmm.virtio.queue.part import Part


class Watched(GuestMemory):
    """Counts the views that it is asked for."""

    asked = 0

    def view(self, gpa: int, length: int) -> memoryview:
        self.asked += 1
        return super().view(gpa, length)


@pytest.fixture
def memory() -> Watched:
    memory = Watched()
    memory.add(0, Region(MIB), name="ram")
    return memory


def test_bytes_and_words_are_the_same_memory(memory: Watched) -> None:
    part = Part(0, memory, 0x1000, 8)
    part.words()[1] = 0x1234
    assert bytes(part.bytes()) == b"\0\0\x34\x12\0\0\0\0"
    assert memory.read(0x1002, 2) == b"\x34\x12"


def test_a_part_in_ram_is_looked_up_once_and_not_before_it_is_used(memory: Watched) -> None:
    part = Part(0, memory, 0x1000, 8)
    assert memory.asked == 0
    for _ in range(3):
        part.words()
        part.bytes()
    assert memory.asked == 1


def test_every_use_is_told_to_those_who_follow_writes(memory: Watched) -> None:
    told: list[tuple[int, int]] = []
    region, part = memory.slots[0].region, Part(0, memory, 0x1000, 8)
    part.words()
    region.follow_writes(lambda offset, length: told.append((offset, length)))
    part.words()
    part.bytes()
    region.follow_writes(None)
    part.words()
    part.words()
    assert told == [(0x1000, 8)] * 2
    assert memory.asked == 3  # once before, twice while it was followed


def test_a_part_in_memory_that_can_be_unplugged_is_looked_up_at_every_use(memory: Watched) -> None:
    occupancy = FakeOccupancy((0, MIB))
    memory.add(GIB, Region(MIB), name="vmem", occupancy=occupancy)
    part = Part(3, memory, GIB, 8)
    part.words()
    occupancy.plugged.clear()
    for use in (part.words, part.bytes):
        with pytest.raises(DeviceBroken, match=r"queue 3: .*unplugged"):
            use()


def test_a_part_of_memory_that_is_gone_is_not_touched(memory: Watched) -> None:
    part = Part(0, memory, 0x1000, 8)
    part.words()
    memory.close()
    with pytest.raises(DeviceBroken, match="not in guest RAM"):
        part.words()


def test_a_part_must_lie_in_one_region(memory: Watched) -> None:
    memory.add(MIB, Region(MIB), name="more")
    with pytest.raises(DeviceBroken, match="not in guest RAM"):
        Part(0, memory, MIB - 8, 16).bytes()
