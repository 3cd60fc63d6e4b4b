"""A snapshot's directory: whole, or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from minivmm.errors import HostError, UsageError
from minivmm.snapshot.format import MACHINE_FILE
from minivmm.snapshot.place import Place


def names(directory: Path) -> set[str]:
    return {file.name for file in directory.iterdir()}


def test_it_is_there_when_it_is_finished_and_not_before(tmp_path: Path) -> None:
    place = Place(tmp_path / "snap")
    (place.work / "ram").write_bytes(b"ram")
    assert not place.path.exists()

    place.finish(b"machine")

    assert {file.name: file.read_bytes() for file in place.path.iterdir()} == {
        MACHINE_FILE: b"machine",
        "ram": b"ram",
    }
    place.abandon()
    assert names(tmp_path) == {"snap"}
    assert place.path.stat().st_mode & 0o077 == 0  # guest memory is nobody else's business


def test_nothing_is_left_of_what_was_given_up(tmp_path: Path) -> None:
    place = Place(tmp_path / "snap")
    (place.work / "ram").write_bytes(b"ram")

    place.abandon()
    place.abandon()

    assert names(tmp_path) == set()


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "snap").mkdir()

    with pytest.raises(UsageError, match=r"snap exists: give a snapshot a directory that does not"):
        Place(tmp_path / "snap")


def test_a_parent_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"nowhere cannot take a snapshot \(No such file"):
        Place(tmp_path / "nowhere" / "snap")


def test_what_a_killed_process_left_is_removed_and_others_work_is_not(tmp_path: Path) -> None:
    others = Place(tmp_path / "snap")
    left = tmp_path / others.work.name.replace(".part-", ".part-killed")
    left.mkdir()
    (left / "ram").write_bytes(b"ram")
    (tmp_path / ".other.part-x").mkdir()

    Place(tmp_path / "snap").abandon()

    assert not left.exists()
    assert names(tmp_path) == {".other.part-x", others.work.name}
    others.finish(b"machine")


def test_a_failure_to_write_is_told_and_can_be_given_up(tmp_path: Path) -> None:
    place = Place(tmp_path / "snap")
    (place.work / MACHINE_FILE).mkdir()

    with pytest.raises(HostError, match=r"snap cannot be written \(Is a directory"):
        place.finish(b"machine")
    place.abandon()

    assert names(tmp_path) == set()
