"""Outline: the block model drawn with a bounded number of cells, for views; and what moved lately.

Cost is bounded too: each block's byte is looked at by memchr, and counted only in cells that are
neither full nor empty, unless cells are so large that counting would take long.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from minivmm.devices.virtio_mem.blocks import Blocks
from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.spec.virtio_mem import BlockState, RequestType

MOST_CELLS = 4096
"""Most cells that an outline may have."""

_COUNTED = 1024
"""Blocks of a cell up to which those of a mixed cell are counted: 0.5 ns each."""


@dataclass(frozen=True)
class CellRun:
    """`cells` neighbours that look alike; `plugged` is blocks in each, None if not counted."""

    cells: int
    state: BlockState
    plugged: int | None


@dataclass(frozen=True)
class Outline:
    """`cells` cells of `cell_blocks` blocks each, the last one perhaps of fewer."""

    cells: int
    cell_blocks: int
    runs: tuple[CellRun, ...]
    """From the start of the region; their cells add up to `cells`."""


@dataclass(frozen=True)
class Move:
    """An acknowledged request that changed blocks, `ago` seconds ago."""

    request: str
    """PLUG, UNPLUG or UNPLUG_ALL."""
    first: int
    count: int
    ago: float


def outline(blocks: Blocks, most: int) -> Outline:
    """`blocks` with at most `most` cells (at least 1), all of them alike."""
    cell_blocks = -(-blocks.count // max(1, min(most, MOST_CELLS)))
    cells = -(-blocks.count // cell_blocks)
    runs: list[CellRun] = []
    for run in _runs(blocks, cells, cell_blocks):
        if runs and (runs[-1].state, runs[-1].plugged) == (run.state, run.plugged):
            run = replace(run, cells=run.cells + runs.pop().cells)
        runs.append(run)
    return Outline(cells, cell_blocks, tuple(runs))


def moves(device: VirtioMem, most: int) -> list[Move]:
    """The last requests that changed blocks, at most `most`, newest first."""
    now = device.activity.clock()
    found: list[Move] = []
    for at, request in reversed(device.ledger.moves):
        if len(found) == most:
            break
        first, count = 0, device.blocks.count
        if request.type != RequestType.UNPLUG_ALL:
            first = (request.addr - device.window.base) // device.block_size
            count = request.nb_blocks
        found.append(Move(RequestType(request.type).name, first, count, now - at))
    return found


def _runs(blocks: Blocks, cells: int, size: int) -> Iterator[CellRun]:
    """Cells of `size` blocks from first to last; those that are all (un)plugged in one go."""
    cell = 0
    while cell < cells:
        first = cell * size
        rest = blocks.count - first
        plugged = blocks.find_plugged(first, rest)
        empty = (cells if plugged is None else plugged // size) - cell
        if empty:
            yield CellRun(empty, BlockState.UNPLUGGED, 0)
            cell += empty
        else:
            gap = blocks.find_unplugged(first, rest)
            whole = (blocks.count if gap is None else gap) // size - cell
            if whole:
                yield CellRun(whole, BlockState.PLUGGED, size)
                cell += whole
            else:
                yield _partial(blocks, first, min(size, rest), counted=size <= _COUNTED)
                cell += 1


def _partial(blocks: Blocks, first: int, count: int, *, counted: bool) -> CellRun:
    """The cell of `count` blocks from `first`, some of which are plugged; the last may be full."""
    if blocks.find_unplugged(first, count) is None:
        return CellRun(1, BlockState.PLUGGED, count)
    plugged = blocks.count_plugged(first, count) if counted else None
    return CellRun(1, BlockState.MIXED, plugged)
