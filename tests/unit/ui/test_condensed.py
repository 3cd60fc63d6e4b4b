"""The block map in few characters."""

from __future__ import annotations

from typing import Any

import pytest

from minivmm.ui.condensed import ASCII, GLYPHS, Look, condense
from minivmm.units import MIB


def device(*runs: tuple[int, str], usable: int | None = None, **more: Any) -> dict[str, Any]:
    """A device with cells of one block of 2 MiB."""
    cells = sum(count for count, _ in runs)
    drawn = [{"cells": n, "state": s, "plugged-blocks": None} for n, s in runs]
    return {
        "block-size": 2 * MIB,
        "usable-size": (cells if usable is None else usable) * 2 * MIB,
        "map": {"cells": cells, "cell-blocks": 1, "runs": drawn},
        "residency": None,
        "moves": [],
        **more,
    }


def drawn(device: dict[str, Any], room: int) -> str:
    return "".join(ASCII[look] for look in condense(device, room))


def test_every_state_has_its_look() -> None:
    runs = (2, "plugged"), (1, "mixed"), (3, "unplugged")

    assert drawn(device(*runs, usable=4), 100) == "OOo.  "


def test_several_cells_share_a_place_when_there_is_no_room() -> None:
    assert drawn(device((3, "plugged"), (5, "unplugged"), usable=6), 4) == "Oo. "
    assert drawn(device((7, "plugged")), 3) == "OOO"


@pytest.mark.parametrize("room", [0, 1, 5, 99])
def test_never_more_places_than_room(room: int) -> None:
    assert len(condense(device((37, "unplugged")), room)) <= max(1, room)


def test_host_memory_shows() -> None:
    held = [{"looked-at": 100, "resident": resident} for resident in (100, 13, 12, 0)]

    assert drawn(device((5, "plugged"), residency={"held": [*held, None]}), 9) == "##OOO"


def test_what_moved_just_now_is_marked_and_the_newest_counts() -> None:
    moves = [
        {"request": "UNPLUG", "first-block": 1, "blocks": 1, "ago": 0.1},
        {"request": "PLUG", "first-block": 0, "blocks": 3, "ago": 0.5},
        {"request": "PLUG", "first-block": 3, "blocks": 1, "ago": 9.0},
    ]
    runs = (1, "plugged"), (1, "unplugged"), (2, "plugged")

    assert drawn(device(*runs, moves=moves), 9) == "+-+O"


def test_a_mark_does_not_contradict_the_state() -> None:
    moves = [{"request": "PLUG", "first-block": 0, "blocks": 2, "ago": 0.1}]

    assert drawn(device((2, "unplugged"), moves=moves), 9) == ".."


@pytest.mark.parametrize("glyphs", [GLYPHS, ASCII])
def test_looks_differ_without_colour(glyphs: dict[Look, str]) -> None:
    assert len(set(glyphs.values())) == len(Look)
    assert all(len(glyph) == 1 for glyph in glyphs.values())
