"""Guest memory as it is saved: what of it there is, and its bytes, without a trace of the reading.

Nothing here touches unplugged memory (reference H-10), and looking for pages of zeroes takes no
host memory. Where the bytes go, a file or a stream, is others' business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from minivmm.errors import BadState
from minivmm.memory.guest import GuestMemory, Slot
from minivmm.memory.ranges import Range, merged
from minivmm.write_log import PAGE

_ZEROES = bytes(PAGE)


@dataclass(frozen=True, slots=True)
class Piece:
    """`size` bytes of guest memory at `gpa`, whole pages; `kind` is "ram", or "mem" if plugged."""

    gpa: int
    size: int
    kind: str

    @property
    def end(self) -> int:
        """First address behind it."""
        return self.gpa + self.size


def plugged(memory: GuestMemory) -> list[Piece]:
    """All that is memory now, ascending: ordinary RAM, and every longest plugged run.

    No memory device may be at work on a request (VirtioMem.at_work): what is just being taken away
    would still be in it.
    """
    found: list[Piece] = []
    for slot in memory.slots:
        found.extend(_pieces(slot))
    return found


def populated(memory: GuestMemory, gpa: int, size: int) -> Iterator[tuple[int, int]]:
    """(gpa, size) of runs in [gpa, gpa + size) that may hold something; the rest is zeroes.

    All of it must lie in one Piece. What the guest never touched is passed over without a look at
    its pages. Lock held.
    """
    slot = _slot(memory, gpa, size)
    for offset, length in slot.region.populated(gpa - slot.gpa, size):
        yield slot.gpa + offset, length


def present(memory: GuestMemory, gpa: int, size: int) -> list[Range]:
    """What of [gpa, gpa + size), whole pages of one region, may be read right now. Lock held.

    That is what is plugged and not just being taken away by a request that is under way.
    """
    slot = _slot(memory, gpa, size)
    offset, occupancy = gpa - slot.gpa, slot.occupancy
    if occupancy is None or occupancy.covers(offset, size):
        return [(gpa, size)]
    pages = range(0, size, PAGE)
    return merged((gpa + at, PAGE) for at in pages if occupancy.covers(offset + at, PAGE))


def empty(memory: GuestMemory, gpa: int, size: int) -> bool:
    """Is [gpa, gpa + size), which `present` said is there, all zeroes? Lock held."""
    slot = _slot(memory, gpa, size)
    return slot.region.is_zero(gpa - slot.gpa, size)


def copy(memory: GuestMemory, gpa: int, size: int) -> bytes:
    """The bytes at [gpa, gpa + size), which `present` said are there; no write. Lock held."""
    slot = _slot(memory, gpa, size)
    return bytes(slot.region.peek(gpa - slot.gpa, size))


def fill(memory: GuestMemory, gpa: int, data: bytes) -> None:
    """Store what was saved of [gpa, gpa + len(data)) into memory that is still empty there.

    Pages of zeroes are not written, so they take no host memory. Raises BadState if not all of
    these bytes are memory of the machine that is loaded.
    """
    if gpa % PAGE or len(data) % PAGE:
        raise BadState("ram", "address", f"{gpa:#x}", f"{len(data)} bytes there are not pages")
    if not _is_memory(memory, gpa, len(data)):
        raise BadState("ram", "address", f"{gpa:#x}", f"{len(data)} bytes there are not memory")
    for offset, length in nonzero(data):
        memory.write(gpa + offset, data[offset : offset + length])


def clear(memory: GuestMemory, gpa: int, size: int) -> None:
    """Make [gpa, gpa + size), whole pages of one Piece, zeroes; its host memory is given back.

    Raises BadState if it is not memory, OSError if the host refuses.
    """
    if gpa % PAGE or size % PAGE or not _is_memory(memory, gpa, size):
        raise BadState("ram", "address", f"{gpa:#x}", f"{size} bytes there are not memory")
    slot = _slot(memory, gpa, size)
    if slot.region.backing.page_size == PAGE:
        memory.discard(gpa, size)
    else:  # parts of a huge page cannot be given back
        memory.write(gpa, bytes(size))


def nonzero(data: bytes) -> Iterator[tuple[int, int]]:
    """(offset, length) of the longest runs of pages in `data` that are not all zeroes.

    `data` is whole pages. Compares without a copy, so a GiB takes tenths of a second.
    """
    start = None
    for at in range(0, len(data), PAGE):
        if data.startswith(_ZEROES, at):
            if start is not None:
                yield start, at - start
                start = None
        elif start is None:
            start = at
    if start is not None:
        yield start, len(data) - start


def _pieces(slot: Slot) -> Iterator[Piece]:
    if slot.occupancy is None:
        yield Piece(slot.gpa, slot.region.size, "ram")
        return
    for offset, length in slot.occupancy.plugged_ranges(0, slot.region.size):
        yield Piece(slot.gpa + offset, length, "mem")


def _slot(memory: GuestMemory, gpa: int, size: int) -> Slot:
    for slot in memory.slots:
        if slot.gpa <= gpa and gpa + size <= slot.end:
            return slot
    raise ValueError(f"{size} bytes at {gpa:#x} are not in one region")


def _is_memory(memory: GuestMemory, gpa: int, size: int) -> bool:
    """Is all of [gpa, gpa + size) in one region and plugged?"""
    for slot in memory.slots:
        if slot.gpa <= gpa and gpa + size <= slot.end:
            return slot.occupancy is None or slot.occupancy.covers(gpa - slot.gpa, size)
    return False
