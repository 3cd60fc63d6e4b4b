"""The block model against the plainest one there is, a set of block numbers: 10,000 steps at least.

The steps are the same in every run.
"""

from __future__ import annotations

from typing import ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from minivmm.devices.virtio_mem.blocks import Blocks
from minivmm.spec.virtio_mem import BlockState
from minivmm.units import MIB

BLOCK = 2 * MIB
COUNT = 24
STEPS = 10_000

numbers = st.integers(0, COUNT - 1)


class BlocksAgainstSet(RuleBasedStateMachine):
    """Plugs and unplugs ranges that are entirely in the other state, as the device does."""

    steps: ClassVar = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).steps -= 1  # invariants are checked after every step, and once before the first
        self.blocks = Blocks(BLOCK, COUNT * BLOCK)
        self.plugged: set[int] = set()

    @rule(first=numbers, length=st.integers(1, COUNT))
    def plug(self, first: int, length: int) -> None:
        wanted = set(range(first, min(first + length, COUNT)))
        if wanted & self.plugged:
            wanted = {first} - self.plugged
        if not wanted:
            return
        self.blocks.plug(first, len(wanted))
        self.plugged |= wanted

    @precondition(lambda self: self.plugged)
    @rule(which=numbers, length=st.integers(1, COUNT))
    def unplug(self, which: int, length: int) -> None:
        first = sorted(self.plugged)[which % len(self.plugged)]
        end = first
        while end in self.plugged and end < first + length:
            end += 1
        self.blocks.unplug(first, end - first)
        self.plugged -= set(range(first, end))

    @rule()
    def unplug_all(self) -> None:
        self.blocks.unplug_all()
        self.plugged.clear()

    @rule(first=numbers, length=st.integers(1, COUNT))
    def state(self, first: int, length: int) -> None:
        asked = set(range(first, min(first + length, COUNT)))
        kinds = {number in self.plugged for number in asked}
        expected = {
            frozenset({True}): BlockState.PLUGGED,
            frozenset({False}): BlockState.UNPLUGGED,
            frozenset({True, False}): BlockState.MIXED,
        }[frozenset(kinds)]
        assert self.blocks.state(first, len(asked)) is expected

    @rule(first=numbers, length=st.integers(1, COUNT))
    def ranges_of_a_part(self, first: int, length: int) -> None:
        """Runs are cut at the borders of the part."""
        part = set(range(first, min(first + length, COUNT)))
        self.check_runs(list(self.blocks.plugged_ranges(first, len(part))), self.plugged & part)

    @invariant()
    def size_is_that_of_the_set(self) -> None:
        """MEM-D-3."""
        assert self.blocks.plugged_size == len(self.plugged) * BLOCK

    @invariant()
    def ranges_are_the_set_in_longest_runs(self) -> None:
        type(self).steps += 1
        self.check_runs(list(self.blocks.plugged_ranges()), self.plugged)

    def check_runs(self, ranges: list[tuple[int, int]], expected: set[int]) -> None:
        assert {n for first, count in ranges for n in range(first, first + count)} == expected
        ends = [first + count for first, count in ranges]
        assert all(end < first for end, (first, _) in zip(ends, ranges[1:], strict=False))


def test_blocks_agree_with_a_set_for_ten_thousand_steps() -> None:
    BlocksAgainstSet.steps = 0

    run_state_machine_as_test(
        BlocksAgainstSet,
        settings=settings(
            max_examples=220,
            stateful_step_count=55,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

    assert BlocksAgainstSet.steps >= STEPS
