"""Shapes of what x-minivmm-view and x-minivmm-residency answer, as query-qmp-schema tells them."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from minivmm.control.memory_queries import AgentInfo

MapRun = TypedDict(
    "MapRun",
    {
        "cells": int,
        "state": Literal["plugged", "unplugged", "mixed"],
        "plugged-blocks": int | None,
    },
)
"""Neighbours that look alike; `plugged-blocks` of each, null if they were not counted."""

BlockMap = TypedDict("BlockMap", {"cells": int, "cell-blocks": int, "runs": list[MapRun]})
"""All blocks, as `cells` cells of `cell-blocks` blocks (the last one perhaps of fewer)."""

MoveInfo = TypedDict("MoveInfo", {"request": str, "first-block": int, "blocks": int, "ago": float})
"""An acknowledged request that changed blocks, `ago` seconds ago."""

DeviceView = TypedDict(
    "DeviceView",
    {
        "id": str,
        "qom-path": str,
        "pci-address": str,
        "requested-size": int,
        "size": int,
        "usable-size": int,
        "max-size": int,
        "block-size": int,
        "memaddr": int,
        "node": int,
        "driver": list[str],
        "trouble": str,
        "at-work": bool,
        "short-of": int,
        "intrusions": int,
        "answers": object,
        "requests": int,
        "queues": list[object],
        "moves": list[MoveInfo],
        "map": NotRequired[BlockMap],
    },
)
"""One virtio-mem device. `driver`: names of the status bits; `answers`: {request: {answer: n}}."""


class EventInfo(TypedDict):
    """An event of docs/trace.md, without its number; `time` in microseconds."""

    time: int
    source: str
    name: str
    fields: object


MachineView = TypedDict(
    "MachineView",
    {
        "name": str,
        "status": str,
        "time": int,
        "base-memory": int,
        "memslots": int,
        "agent": AgentInfo,
        "memory-devices": list[DeviceView],
        "events": list[EventInfo],
    },
)
"""Everything that a live view shows; `time` in microseconds of a monotonic clock."""

HeldCell = TypedDict("HeldCell", {"looked-at": int, "resident": int})
"""Bytes of a cell that were looked at, and how many of them take host memory."""

Residency = TypedDict(
    "Residency",
    {
        "id": str,
        "resident": int,
        "resident-huge": int,
        "cells": int,
        "cell-blocks": int,
        "first": int,
        "held": list[HeldCell],
        "next": int,
    },
)
"""Host memory behind a device: as a whole, and of some of its cells from `first` on."""
