"""A device's block map in as many characters as there is room for; plain data, no terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

RECENT = 2.0
"""Seconds for which a place that moved is marked."""


class Look(Enum):
    """What is drawn at a place of the map; values are the style's names."""

    UNUSABLE = "unusable"
    """Beyond the usable region: the guest cannot plug here."""
    UNPLUGGED = "unplugged"
    MIXED = "mixed"
    PLUGGED = "plugged"
    """Plugged, but (nearly) nothing of it takes host memory yet."""
    HELD = "held"
    """Plugged, and host memory is behind it."""
    GREW = "grew"
    SHRANK = "shrank"
    """Blocks were (un)plugged here just now."""


GLYPHS = {
    Look.UNUSABLE: " ",
    Look.UNPLUGGED: "·",
    Look.MIXED: "░",
    Look.PLUGGED: "▒",
    Look.HELD: "█",
    Look.GREW: "+",
    Look.SHRANK: "-",
}
ASCII = {**GLYPHS, Look.UNPLUGGED: ".", Look.MIXED: "o", Look.PLUGGED: "O", Look.HELD: "#"}
"""For terminals that do not speak UTF-8."""


@dataclass(frozen=True)
class _Place:
    """Cells [first, end) of the map, drawn as one."""

    first: int
    end: int


def condense(device: Mapping[str, Any], room: int) -> list[Look]:
    """At most `room` places for `device` of x-minivmm-view, each for equally many cells."""
    cells = device["map"]["cells"]
    group = -(-cells // max(1, room))
    places = [_Place(at, min(cells, at + group)) for at in range(0, cells, group)]
    looks = _states(device, places)
    _mark_moves(device, group, looks)
    return looks


def _states(device: Mapping[str, Any], places: Sequence[_Place]) -> list[Look]:
    drawn = device["map"]
    states: list[str] = []
    for run in drawn["runs"]:
        states += [run["state"]] * run["cells"]
    cell_bytes = drawn["cell-blocks"] * device["block-size"]
    usable = -(-device["usable-size"] // cell_bytes)
    held = (device["residency"] or {}).get("held") or [None] * drawn["cells"]
    found = []
    for place in places:
        seen = set(states[place.first : place.end])
        if seen == {"plugged"}:
            look = Look.HELD if _is_held(held[place.first : place.end]) else Look.PLUGGED
        elif seen != {"unplugged"}:
            look = Look.MIXED
        else:
            look = Look.UNPLUGGED if place.first < usable else Look.UNUSABLE
        found.append(look)
    return found


def _is_held(cells: Sequence[Mapping[str, int] | None]) -> bool:
    """Is there host memory behind at least an eighth of what was looked at?"""
    seen = [cell for cell in cells if cell is not None]
    return sum(c["resident"] for c in seen) * 8 >= sum(c["looked-at"] for c in seen) > 0


def _mark_moves(device: Mapping[str, Any], group: int, looks: list[Look]) -> None:
    """The newest move of a place counts, hence oldest first."""
    blocks = device["map"]["cell-blocks"] * group
    for move in reversed([move for move in device["moves"] if move["ago"] <= RECENT]):
        first, last = move["first-block"], move["first-block"] + move["blocks"] - 1
        plugged = move["request"] == "PLUG"
        for at in range(first // blocks, last // blocks + 1):
            # What is drawn must not contradict what is: an old plug may be undone by a reset.
            if plugged and looks[at] not in (Look.UNPLUGGED, Look.UNUSABLE):
                looks[at] = Look.GREW
            elif not plugged and looks[at] not in (Look.PLUGGED, Look.HELD):
                looks[at] = Look.SHRANK
