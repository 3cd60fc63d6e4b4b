"""What a trace's figures show, as plain numbers; how they are drawn is svg.py's and plots.py's."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from minivmm.report.resizes import Request
from minivmm.report.story import MemoryDevice, Story
from minivmm.units import align_up

MAP_COLUMNS = 240
"""Moments that a block map shows at most."""

MAP_ROWS = 64
"""Pieces of the region that a block map shows at most."""

Steps = list[tuple[float, int]]
"""(time in seconds, bytes): the value from that moment on."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of one device over time."""

    requested: Steps
    plugged: Steps


@dataclass(frozen=True)
class Latency:
    """How long requests of one type took, in seconds."""

    type: str
    sorted: tuple[float, ...]

    def quantile(self, share: float) -> float:
        """The smallest latency that `share` (0..1) of the requests did not exceed."""
        rank = max(1, math.ceil(share * len(self.sorted)))
        return self.sorted[rank - 1]


@dataclass(frozen=True)
class BlockMap:
    """`cells[row][column]`: the share (0..1) of that piece that was plugged at that moment."""

    times: tuple[float, ...]
    """Moment of each column, in seconds."""
    first: int
    """gpa of row 0, in bytes."""
    piece: int
    """Bytes in a row: one block or more."""
    cells: tuple[tuple[float, ...], ...]


def sizes(story: Story, device: MemoryDevice) -> Sizes:
    """What was wanted and plugged, from the trace's beginning to its end."""
    requested: Steps = [(story.begin, device.requested)]
    plugged: Steps = [(story.begin, device.plugged)]
    for event in story.of(device.id):
        state = event.get("state", {})
        for steps, key in ((requested, "requested-size"), (plugged, "plugged-size")):
            if key in state and state[key] != steps[-1][1]:
                steps.append((event["t"], state[key]))
    for steps in (requested, plugged):
        steps.append((story.end, steps[-1][1]))
    return Sizes(requested, plugged)


def latencies(requests: Sequence[Request]) -> list[Latency]:
    """By type of request, those that occurred."""
    by_type: dict[str, list[float]] = {}
    for request in requests:
        if request.seconds is not None:
            by_type.setdefault(request.type, []).append(request.seconds)
    return [Latency(kind, tuple(sorted(found))) for kind, found in sorted(by_type.items())]


def answers(requests: Sequence[Request]) -> Mapping[tuple[str, str], int]:
    """(type, answer) -> how often."""
    return Counter((request.type, request.answer) for request in requests)


def block_map(story: Story, device: MemoryDevice, requests: Sequence[Request]) -> BlockMap | None:
    """Which blocks were plugged when; None if the trace does not know it at its beginning."""
    if not device.complete:
        return None
    extent = _extent(device, requests)
    rows = min(MAP_ROWS, max(1, extent // device.block_size))
    piece = align_up(align_up(extent, rows) // rows, device.block_size)
    rows = align_up(extent, piece) // piece
    span = max(story.end - story.begin, 1e-9)
    columns = min(MAP_COLUMNS, max(2, len(requests) + 1))
    times = tuple(story.begin + span * at / (columns - 1) for at in range(columns))
    filled = [0] * rows
    for gpa, size in device.ranges:
        _add(filled, gpa - device.memaddr, size, piece, 1)
    changes = _changes(story, device, requests)
    history: list[list[float]] = []
    at = 0
    for time in times:
        while at < len(changes) and changes[at][0] <= time:
            _, gpa, size, sign = changes[at]
            if sign:
                _add(filled, gpa - device.memaddr, size, piece, sign)
            else:
                filled = [0] * rows
            at += 1
        history.append([min(1.0, bytes_there / piece) for bytes_there in filled])
    cells = tuple(tuple(column[row] for column in history) for row in range(rows))
    return BlockMap(times, device.memaddr, piece, cells)


def _changes(
    story: Story, device: MemoryDevice, requests: Sequence[Request]
) -> list[tuple[float, int, int, int]]:
    """(time, gpa, size, sign): plugged (1), unplugged (-1), or everything unplugged (0)."""
    signs = {"PLUG": 1, "UNPLUG": -1, "UNPLUG_ALL": 0}
    found = [
        (one.t + (one.seconds or 0.0), one.gpa or 0, one.size, signs[one.type])
        for one in requests
        if one.answer == "ACK" and one.type in signs
    ]
    resets = [event["t"] for event in story.of("machine") if event["name"] == "reset"]
    return sorted([*found, *((t, 0, 0, 0) for t in resets)])


def _extent(device: MemoryDevice, requests: Sequence[Request]) -> int:
    """Bytes of the region, from its beginning, that were ever used: the rest would be blank."""
    ends = [gpa + size for gpa, size in device.ranges]
    ends += [one.gpa + one.size for one in requests if one.gpa is not None and one.answer == "ACK"]
    used = max(ends, default=device.memaddr) - device.memaddr
    return min(device.region_size, max(used, device.block_size))


def _add(filled: list[int], offset: int, size: int, piece: int, sign: int) -> None:
    """Count `size` bytes at `offset` in the pieces that they lie in."""
    end = offset + size
    while offset < end:
        row = offset // piece
        step = min(end, (row + 1) * piece) - offset
        if row < len(filled):
            filled[row] += sign * step
        offset += step
