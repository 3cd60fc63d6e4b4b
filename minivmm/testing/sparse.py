"""A sparse region without a device: tests say which of its bytes are plugged."""

from __future__ import annotations

from collections.abc import Iterator


class FakeOccupancy:
    """`plugged` holds (offset, length) ranges in bytes; tests may change it at any time."""

    def __init__(self, *plugged: tuple[int, int]) -> None:
        self.plugged = list(plugged)
        self.readable = 0
        self.refusals: list[tuple[int, int]] = []

    def covers(self, offset: int, length: int) -> bool:
        """True if one of the ranges contains all the bytes."""
        return any(
            start <= offset and offset + length <= start + size for start, size in self.plugged
        )

    def plugged_ranges(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """The ranges, cut to [offset, offset + length)."""
        for start, size in sorted(self.plugged):
            first, end = max(start, offset), min(start + size, offset + length)
            if first < end:
                yield first, end - first

    def refused(self, offset: int, length: int) -> None:
        """Remember it."""
        self.refusals.append((offset, length))
