"""Paths into the live tree."""

import pytest

from minivmm.control.tree import paths, walk
from minivmm.errors import Refused

TREE = {
    "state": "running",
    "vcpus": [{"index": 0}, {"index": 1}],
    "board": {"pci": {"0000:00:01.0": {"isr": 0}, "0000:00:01": "shorter"}},
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("", TREE),
        (".", TREE),
        ("state", "running"),
        ("vcpus.1.index", 1),
        ("vcpus/1/index", 1),
        ("board.pci.0000:00:01.0.isr", 0),
        ("board.pci.0000:00:01", "shorter"),
        ("/board/pci/0000:00:01.0/", {"isr": 0}),
    ],
)
def test_parts_are_found(path: str, value: object) -> None:
    assert walk(TREE, path) == value


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("boad", "unknown part of the machine: 'boad' (did you mean board?); valid: state, vcpus"),
        ("vcpus.2", "unknown part of vcpus: '2'"),
        ("board.pci.nope.x", "unknown part of board.pci: 'nope'"),
        ("state.x", "state has nothing inside: use state itself"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(path: str, why: str) -> None:
    with pytest.raises(Refused) as refusal:
        walk(TREE, path)
    assert str(refusal.value).startswith(why)


def test_paths_to_complete() -> None:
    assert paths(TREE, 2) == ["vcpus", "vcpus.0", "vcpus.1", "board", "board.pci"]
