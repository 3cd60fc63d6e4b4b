"""The memslots of one sparse region, by offset: which there are, which are missing, and in use.

Told here is what is; memslots.py has KVM make it so.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from minivmm.memory.guest import Slot
from minivmm.units import GIB

LEAST_RANGE = GIB
"""Bytes of the smallest range: the largest page that KVM maps, so that no border cuts one."""


def range_size(sparse: int, block: int, limit: int) -> int:
    """Bytes of a range if sparse regions have `sparse` bytes, the largest block `block`.

    A power of two that needs at most three quarters of the `limit` memslots even when every range
    is in use; the rest is for narrow().
    """
    size = max(LEAST_RANGE, block)
    while sparse // size > limit * 3 // 4:
        size *= 2
    return size


@dataclass(slots=True)
class Piece:
    """A memslot: `length` bytes at `offset` of a region, `plugged` of which are."""

    offset: int
    length: int
    number: int
    plugged: int = 0

    @property
    def end(self) -> int:
        """Offset behind its last byte."""
        return self.offset + self.length


@dataclass(slots=True)
class Pieces:
    """A sparse region and its memslots, by offset; none crosses the border of a range."""

    slot: Slot
    pieces: list[Piece] = field(default_factory=list)

    def touching(self, offset: int, length: int) -> list[Piece]:
        """The pieces that share a byte with [offset, offset + length)."""
        first = bisect_right(self.pieces, offset, key=lambda piece: piece.end)
        behind = bisect_left(self.pieces, offset + length, key=lambda piece: piece.offset)
        return self.pieces[first:behind]

    def covering(self, offset: int, length: int) -> Piece | None:
        """The piece that has all of [offset, offset + length), if one has."""
        at = bisect_right(self.pieces, offset, key=lambda piece: piece.offset) - 1
        if at < 0 or offset + length > self.pieces[at].end:
            return None
        return self.pieces[at]

    def missing(self, offset: int, length: int, unit: int) -> Iterator[tuple[int, int]]:
        """(offset, length) of what needs a memslot before [offset, offset + length) is plugged.

        A whole range where there is none; in a range that was narrowed just what is not covered.
        """
        end = offset + length
        for start in range(offset - offset % unit, end, unit):
            size = min(unit, self.slot.region.size - start)
            if not self.touching(start, size):
                yield start, size
                continue
            at, stop = max(offset, start), min(end, start + size)
            for piece in self.touching(at, stop - at):
                if at < piece.offset:
                    yield at, piece.offset - at
                at = piece.end
            if at < stop:
                yield at, stop - at

    def count(self, offset: int, length: int, sign: int) -> None:
        """Bytes of [offset, offset + length) became plugged (`sign` 1) or unplugged (-1)."""
        for piece in self.touching(offset, length):
            shared = min(piece.end, offset + length) - max(piece.offset, offset)
            piece.plugged += sign * shared
