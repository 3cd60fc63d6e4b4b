"""QMP commands for live views: x-minivmm-view, all of it in one cheap answer; x-minivmm-residency.

Cost is bounded whatever the regions' sizes: a map has at most as many cells as asked for, and host
memory is looked for only in the second command, at most a GiB at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from typing import Literal

from minivmm.control.commands import command
from minivmm.control.face import Context
from minivmm.control.memory_commands import chosen
from minivmm.control.memory_queries import agent_info
from minivmm.control.view_shapes import (
    BlockMap,
    DeviceView,
    EventInfo,
    HeldCell,
    MachineView,
    Residency,
)
from minivmm.devices.spec import qom_path
from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.devices.virtio_mem.outline import MOST_CELLS, Outline, moves, outline
from minivmm.errors import Refused
from minivmm.memory.region import PAGE_SIZE
from minivmm.spec.virtio_mem import BlockState
from minivmm.trace import Event
from minivmm.units import GIB, MIB, align_down

CELLS = 512
"""Cells of a map, unless asked for another number."""

EVENTS = 200
"""Most events of an answer, and moves of a device."""

LOOKED_AT = GIB
"""Bytes that x-minivmm-residency looks at in one call."""

PIECE = 64 * MIB
"""Bytes looked at in each cell; of larger cells these stand for the rest."""

_STATES: dict[BlockState, Literal["plugged", "unplugged", "mixed"]] = {
    BlockState.PLUGGED: "plugged",
    BlockState.UNPLUGGED: "unplugged",
    BlockState.MIXED: "mixed",
}


@command("x-minivmm-view")
def view(context: Context, cells: int = CELLS, events_after: int | None = None) -> MachineView:
    """Everything that a live view shows: sizes, block maps, queues, counters, recent events.

    `cells` is the most that a block map may have, 0 for none. Events are the latest of those after
    `events-after`, the "time" of an earlier answer or 0; none by default. Times are microseconds of
    one monotonic clock.
    """
    if not 0 <= cells <= MOST_CELLS:
        raise Refused(f"Parameter 'cells' expects 0 to {MOST_CELLS}")
    machine = context.machine
    return {
        "name": machine.name,
        "status": machine.state,
        "time": microseconds(monotonic()),
        "base-memory": machine.boot_memory,
        "memslots": machine.memslots,
        "agent": agent_info(context),
        "memory-devices": [_device(context, d, cells) for d in machine.memory_devices.values()],
        "events": list(_later(machine.trace.recent(), events_after)),
    }


@command("x-minivmm-residency")
def residency(context: Context, id: str, cells: int = CELLS, first: int = 0) -> Residency:
    """Host memory behind memory device `id`, by cells of the same block map as x-minivmm-view's.

    Looks from cell `first` on as far as LOOKED_AT reaches; `next` is where to go on, 0 at the end.
    Of each cell `looked-at` bytes were looked at, of which `resident` take host memory.
    """
    (device,) = chosen(context, id)
    if not 1 <= cells <= MOST_CELLS:
        raise Refused(f"Parameter 'cells' expects 1 to {MOST_CELLS}")
    grid = outline(device.blocks, cells)
    if not 0 <= first < grid.cells:
        raise Refused(f"Parameter 'first' expects 0 to {grid.cells - 1}")
    held = list(_held(device, grid, first))
    usage = device.region.usage()
    return {
        "id": id,
        "resident": usage.resident,
        "resident-huge": usage.huge,
        "cells": grid.cells,
        "cell-blocks": grid.cell_blocks,
        "first": first,
        "held": held,
        "next": (first + len(held)) % grid.cells,
    }


def microseconds(time: float) -> int:
    """An event's time as it goes on the wire."""
    return round(time * 1_000_000)


def _device(context: Context, device: VirtioMem, cells: int) -> DeviceView:
    around = context.machine.view(device.identifier).around
    answers = device.ledger.counts()
    found: DeviceView = {
        "id": device.identifier,
        "qom-path": qom_path(device.identifier),
        "pci-address": around.pci_address,
        "requested-size": device.requested_size,
        "size": device.plugged_size,
        "usable-size": device.usable_region_size,
        "max-size": device.region_size,
        "block-size": device.block_size,
        "memaddr": device.window.base,
        "node": device.spec.node,
        "driver": (around.status.name or "").replace("|", " ").split(),
        "trouble": around.trouble,
        "at-work": device.at_work,
        "short-of": device.shortage.short_of,
        "intrusions": device.intruders.count,
        "answers": answers,
        "requests": sum(sum(times.values()) for times in answers.values()),
        "queues": [dict(queue) for queue in around.queues],
        "moves": [
            {
                "request": m.request,
                "first-block": m.first,
                "blocks": m.count,
                "ago": round(m.ago, 3),
            }
            for m in moves(device, EVENTS)
        ],
    }
    if cells:
        found["map"] = _map(outline(device.blocks, cells))
    return found


def _map(grid: Outline) -> BlockMap:
    return {
        "cells": grid.cells,
        "cell-blocks": grid.cell_blocks,
        "runs": [
            {"cells": run.cells, "state": _STATES[run.state], "plugged-blocks": run.plugged}
            for run in grid.runs
        ],
    }


def _held(device: VirtioMem, grid: Outline, first: int) -> Iterator[HeldCell]:
    """One entry for each cell from `first` on, while LOOKED_AT lasts."""
    cell = grid.cell_blocks * device.block_size
    piece = align_down(min(cell, PIECE), PAGE_SIZE)
    whole = min(grid.cells, device.region_size // cell)
    end = min(whole, first + max(1, LOOKED_AT // piece))
    if piece == cell and end > first:
        for held in device.region.resident_pieces(first * cell, cell, end - first):
            yield {"looked-at": cell, "resident": held}
    else:
        for at in range(first, end):
            yield {"looked-at": piece, "resident": device.region.resident_in(at * cell, piece)}
    if end == whole < grid.cells and end - first < max(1, LOOKED_AT // piece):
        rest = min(piece, device.region_size - whole * cell)
        yield {"looked-at": rest, "resident": device.region.resident_in(whole * cell, rest)}


def _later(events: list[Event], after: int | None) -> Iterator[EventInfo]:
    """The events after the time `after`, as JSON, oldest first."""
    if after is None:
        return
    for event in events[-EVENTS:]:
        if microseconds(event.time) > after:
            yield {
                "time": microseconds(event.time),
                "source": event.source,
                "name": event.name,
                "fields": event.fields,
            }
