"""Lists of ranges, compared with sets of their bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from minivmm.memory.ranges import common, merged, take_out, without

RANGES = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6)), max_size=8)


def bytes_of(ranges: list[tuple[int, int]]) -> set[int]:
    return {at for start, length in ranges for at in range(start, start + length)}


def is_tidy(ranges: list[tuple[int, int]]) -> bool:
    ends = [sum(one) for one in ranges]
    starts = [start for start, _ in ranges]
    return all(end <= start for end, start in zip(ends, starts[1:], strict=False))


@given(RANGES)
def test_merged_covers_the_same_in_the_fewest(ranges: list[tuple[int, int]]) -> None:
    found = merged(ranges)
    assert bytes_of(found) == bytes_of(ranges)
    starts = [start for start, _ in found]
    assert all(sum(one) < start for one, start in zip(found, starts[1:], strict=False))


def test_merged_closes_holes_up_to_the_gap() -> None:
    assert merged([(0, 4), (6, 2), (11, 1)], gap=2) == [(0, 8), (11, 1)]


@given(RANGES, RANGES)
def test_common_is_what_lies_in_both(
    one: list[tuple[int, int]], two: list[tuple[int, int]]
) -> None:
    found = common(merged(one), merged(two))
    assert bytes_of(found) == bytes_of(one) & bytes_of(two)
    assert is_tidy(found)


@given(RANGES, RANGES)
def test_without_is_what_the_others_leave(
    one: list[tuple[int, int]], two: list[tuple[int, int]]
) -> None:
    found = without(merged(one), merged(two))
    assert bytes_of(found) == bytes_of(one) - bytes_of(two)
    assert is_tidy(found)


@given(RANGES, st.integers(0, 40), st.integers(1, 10))
def test_what_is_taken_out_is_in_one_of_both(
    ranges: list[tuple[int, int]], start: int, length: int
) -> None:
    left = merged(ranges)
    taken = take_out(left, start, length)
    assert bytes_of(taken) == bytes_of(ranges) & bytes_of([(start, length)])
    assert bytes_of(left) == bytes_of(ranges) - bytes_of([(start, length)])
    assert is_tidy(left)
