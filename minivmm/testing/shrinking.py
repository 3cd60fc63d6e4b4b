"""Delta debugging: what is not needed for a finding is left out of a sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def fewer(items: Sequence[T], same: Callable[[tuple[T, ...]], bool]) -> tuple[T, ...]:
    """Those of `items`, which are found to be the `same`, without most of what they do not need.

    Halves, quarters, ... single items are taken out, from the end on (ddmin).
    """
    kept = tuple(items)
    size = max(1, len(kept) // 2)
    while True:
        end = len(kept)
        while end > 0:
            start = max(0, end - size)
            candidate = kept[:start] + kept[end:]
            if same(candidate):
                kept = candidate
            end = start
        if size == 1:
            return kept
        size = max(1, size // 2)
