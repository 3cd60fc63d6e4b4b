"""The block model as a bounded number of cells, and what moved lately."""

from __future__ import annotations

import pytest

from minivmm.devices.virtio_mem.blocks import Blocks
from minivmm.devices.virtio_mem.outline import CellRun, moves, outline
from minivmm.spec.virtio_mem import BlockState, RequestType
from minivmm.testing.mem_bench import MemBench
from minivmm.units import GIB, MIB, TIB

UNPLUGGED, PLUGGED, MIXED = BlockState.UNPLUGGED, BlockState.PLUGGED, BlockState.MIXED


def blocks(count: int, *plugged: tuple[int, int]) -> Blocks:
    found = Blocks(2 * MIB, count * 2 * MIB)
    for first, many in plugged:
        found.plug(first, many)
    return found


def test_a_cell_for_each_block_where_there_is_room() -> None:
    drawn = outline(blocks(8, (0, 3), (5, 1)), 100)

    assert (drawn.cells, drawn.cell_blocks) == (8, 1)
    assert drawn.runs == (
        CellRun(3, PLUGGED, 1),
        CellRun(2, UNPLUGGED, 0),
        CellRun(1, PLUGGED, 1),
        CellRun(2, UNPLUGGED, 0),
    )


def test_cells_of_several_blocks_tell_how_many_are_plugged() -> None:
    drawn = outline(blocks(16, (1, 6), (12, 1)), 4)

    assert (drawn.cells, drawn.cell_blocks) == (4, 4)
    assert drawn.runs == (
        CellRun(2, MIXED, 3),
        CellRun(1, UNPLUGGED, 0),
        CellRun(1, MIXED, 1),
    )


def test_the_last_cell_may_be_smaller() -> None:
    drawn = outline(blocks(10, (8, 2)), 4)

    assert (drawn.cells, drawn.cell_blocks) == (4, 3)
    assert drawn.runs == (CellRun(2, UNPLUGGED, 0), CellRun(1, MIXED, 1), CellRun(1, PLUGGED, 1))


@pytest.mark.parametrize("most", [1, 2, 7, 512, 1 << 30])
@pytest.mark.parametrize("count", [1, 2, 511, 512, 513, 100_003])
def test_all_blocks_are_drawn_and_never_more_cells_than_asked_for(most: int, count: int) -> None:
    drawn = outline(blocks(count, (count // 2, 1)), most)

    assert drawn.cells <= min(most, count, 4096)
    assert sum(run.cells for run in drawn.runs) == drawn.cells
    assert (drawn.cells - 1) * drawn.cell_blocks < count <= drawn.cells * drawn.cell_blocks
    (held,) = [run for run in drawn.runs if run.state is not UNPLUGGED]
    assert held.cells == 1


def test_mixed_cells_of_a_huge_region_are_not_counted() -> None:
    huge = Blocks(2 * MIB, 16 * TIB)
    huge.plug(3, 5)

    drawn = outline(huge, 1024)

    assert drawn.cell_blocks == 8192
    assert drawn.runs == (CellRun(1, MIXED, None), CellRun(1023, UNPLUGGED, 0))


def test_moves_are_the_acknowledged_changes_newest_first() -> None:
    now = 0.0
    with MemBench(size=GIB, block_size=2 * MIB) as bench:
        bench.device.activity.clock = lambda: now
        bench.device.set_requested_size(512 * MIB)
        bench.driver.plug(0, 64)
        now = 2.0
        bench.driver.plug(0, 64)  # NACK: they are plugged
        bench.driver.state(0)
        bench.driver.unplug(3, 2)
        now = 5.0
        bench.driver.unplug_all()
        now = 5.5

        found = [(m.request, m.first, m.count, m.ago) for m in moves(bench.device, 10)]
        shorter = moves(bench.device, 2)

    assert found == [
        (RequestType.UNPLUG_ALL.name, 0, 512, 0.5),
        (RequestType.UNPLUG.name, 3, 2, 3.5),
        (RequestType.PLUG.name, 0, 64, 5.5),
    ]
    assert len(shorter) == 2
