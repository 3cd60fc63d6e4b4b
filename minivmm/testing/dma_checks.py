"""What must be true of DMA mappings after every request: they are RAM and plugged blocks, exactly.

Reads what the container itself has, not what dma.py believes.
"""

from __future__ import annotations

from minivmm.memory.guest import GuestMemory
from minivmm.testing.fake_container import FakeContainer

Run = tuple[int, int, int]
"""(gpa, size, hva)."""


def check_mappings(memory: GuestMemory, container: FakeContainer) -> None:
    """Raises AssertionError if a mapping covers an unplugged block, or anything is missing."""
    found = _joined([(one.iova, one.size, one.hva) for one in container.mappings])
    expected = _joined(_usable(memory))
    for gpa, size, hva in found:
        inside = any(
            at <= gpa and gpa + size <= at + length and hva - gpa == there - at
            for at, length, there in expected
        )
        assert inside, f"devices reach {size:#x} bytes at {gpa:#x}, not all of them plugged"
    assert found == expected, "devices do not reach all that is plugged"


def _usable(memory: GuestMemory) -> list[Run]:
    """What devices may use: all of RAM, and what is plugged."""
    runs: list[Run] = []
    for slot in memory.slots:
        ranges = [(0, slot.region.size)]
        if slot.occupancy is not None:
            ranges = list(slot.occupancy.plugged_ranges(0, slot.region.size))
        runs += [(slot.gpa + at, size, slot.region.hva + at) for at, size in ranges]
    return runs


def _joined(runs: list[Run]) -> list[Run]:
    """Neighbours as one, by address."""
    found: list[Run] = []
    for gpa, size, hva in sorted(runs):
        if found:
            at, length, there = found[-1]
            if at + length == gpa and there + length == hva:
                found[-1] = at, length + size, there
                continue
        found.append((gpa, size, hva))
    return found
