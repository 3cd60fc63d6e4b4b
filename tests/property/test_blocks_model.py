"""The block model against the plainest one there is: a set of block numbers."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from minivmm.devices.virtio_mem.blocks import Blocks
from minivmm.spec.virtio_mem import BlockState
from minivmm.units import MIB

BLOCK = 2 * MIB
COUNT = 24

numbers = st.integers(0, COUNT - 1)


class BlocksAgainstSet(RuleBasedStateMachine):
    """Plugs and unplugs ranges that are entirely in the other state, as the device does."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = Blocks(BLOCK, COUNT * BLOCK)
        self.plugged: set[int] = set()

    @rule(first=numbers, length=st.integers(1, COUNT))
    def plug(self, first: int, length: int) -> None:
        wanted = set(range(first, min(first + length, COUNT)))
        if wanted & self.plugged:
            return
        self.blocks.plug(first, len(wanted))
        self.plugged |= wanted

    @precondition(lambda self: self.plugged)
    @rule(data=st.data(), length=st.integers(1, COUNT))
    def unplug(self, data: st.DataObject, length: int) -> None:
        first = data.draw(st.sampled_from(sorted(self.plugged)))
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

    @invariant()
    def size_is_that_of_the_set(self) -> None:
        """MEM-D-3."""
        assert self.blocks.plugged_size == len(self.plugged) * BLOCK

    @invariant()
    def ranges_are_the_set_in_longest_runs(self) -> None:
        ranges = list(self.blocks.plugged_ranges())
        assert {n for first, count in ranges for n in range(first, first + count)} == self.plugged
        ends = [first + count for first, count in ranges]
        assert all(end < first for end, (first, _) in zip(ends, ranges[1:], strict=False))


BlocksAgainstSet.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestBlocksAgainstSet = BlocksAgainstSet.TestCase
