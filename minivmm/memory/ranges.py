"""Ranges of bytes as (start, length): joining and cutting lists of them; not what they mean."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable

Range = tuple[int, int]
"""(start, length)."""


def merged(ranges: Iterable[Range], gap: int = 0) -> list[Range]:
    """The fewest ranges that cover the same, ascending; holes of up to `gap` are covered too."""
    found: list[Range] = []
    for start, length in sorted(ranges):
        if found and start <= sum(found[-1]) + gap:
            first = found[-1][0]
            found[-1] = (first, max(sum(found[-1]), start + length) - first)
        else:
            found.append((start, length))
    return found


def take_out(ranges: list[Range], start: int, length: int) -> list[Range]:
    """Remove [start, start + length) from `ranges`, ascending and disjoint; what of it was there.

    In place, and for a long list nearly as cheap as for a short one.
    """
    end = start + length
    first = bisect_right(ranges, start, key=sum)
    behind = bisect_left(ranges, end, key=lambda one: one[0])
    found = ranges[first:behind]
    ranges[first:behind] = without(found, [(start, length)])
    return common(found, [(start, length)])


def common(ranges: Iterable[Range], others: Iterable[Range]) -> list[Range]:
    """What lies in both; each is ascending and without overlaps, and so is the result."""
    found: list[Range] = []
    rest = iter(others)
    other = next(rest, None)
    for start, length in ranges:
        end = start + length
        while other is not None and sum(other) <= start:
            other = next(rest, None)
        while other is not None and other[0] < end:
            first = max(start, other[0])
            found.append((first, min(end, sum(other)) - first))
            if sum(other) > end:
                break
            other = next(rest, None)
    return found


def without(ranges: Iterable[Range], others: Iterable[Range]) -> list[Range]:
    """What of `ranges` is in none of `others`; each is ascending and without overlaps."""
    found: list[Range] = []
    rest = iter(others)
    other = next(rest, None)
    for start, length in ranges:
        end = start + length
        while other is not None and sum(other) <= start:
            other = next(rest, None)
        while other is not None and other[0] < end:
            if other[0] > start:
                found.append((start, other[0] - start))
            start = sum(other)
            if start > end:
                break
            other = next(rest, None)
        if start < end:
            found.append((start, end - start))
    return found
