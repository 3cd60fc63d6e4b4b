"""The block model on its own."""

from __future__ import annotations

import pytest

from minivmm.devices.virtio_mem.blocks import Blocks
from minivmm.spec.virtio_mem import BlockState
from minivmm.units import MIB

COUNT = 16


@pytest.fixture
def blocks() -> Blocks:
    return Blocks(2 * MIB, COUNT * 2 * MIB)


def test_everything_is_unplugged_at_first(blocks: Blocks) -> None:
    assert blocks.count == COUNT
    assert blocks.plugged_size == 0
    assert blocks.state(0, COUNT) is BlockState.UNPLUGGED
    assert list(blocks.plugged_ranges()) == []


def test_plugging_changes_exactly_its_range(blocks: Blocks) -> None:
    blocks.plug(3, 4)

    assert blocks.plugged_size == 4 * 2 * MIB
    assert list(blocks.plugged_ranges()) == [(3, 4)]
    assert blocks.state(3, 4) is BlockState.PLUGGED
    assert blocks.state(0, 3) is BlockState.UNPLUGGED
    assert blocks.state(7, COUNT - 7) is BlockState.UNPLUGGED


@pytest.mark.parametrize(("first", "count"), [(2, 2), (6, 2), (0, COUNT), (2, 6)])
def test_partly_plugged_range_is_mixed(blocks: Blocks, first: int, count: int) -> None:
    blocks.plug(3, 4)

    assert blocks.state(first, count) is BlockState.MIXED


def test_unplugging_the_middle_leaves_two_ranges(blocks: Blocks) -> None:
    blocks.plug(0, COUNT)

    blocks.unplug(5, 6)

    assert list(blocks.plugged_ranges()) == [(0, 5), (11, 5)]
    assert blocks.plugged_size == 10 * 2 * MIB


def test_unplug_all_forgets_everything(blocks: Blocks) -> None:
    blocks.plug(0, 3)
    blocks.plug(9, 7)

    blocks.unplug_all()

    assert blocks.plugged_size == 0
    assert blocks.state(0, COUNT) is BlockState.UNPLUGGED


def test_last_block_and_neighbouring_ranges(blocks: Blocks) -> None:
    blocks.plug(COUNT - 1, 1)
    blocks.plug(COUNT - 2, 1)

    assert list(blocks.plugged_ranges()) == [(COUNT - 2, 2)]
