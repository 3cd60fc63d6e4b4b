"""Snapshots over QMP: asked for, followed, called off; how they are taken is in test_taken.py."""

from __future__ import annotations

from typing import Any

import pytest

from minivmm.control.commands import perform
from minivmm.control.face import Context
from minivmm.errors import Refused
from minivmm.snapshot.taken import Progress
from minivmm.testing.fake_machine import FakeMachine


class FakeDesk:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self.asked: list[object] = []

    def begin(self, directory: str, base: str | None, *, track: bool) -> None:
        self.asked.append((directory, base, track))
        self.progress = Progress()

    def cancel(self) -> None:
        self.asked.append("cancel")


@pytest.fixture
def desk() -> FakeDesk:
    return FakeDesk()


@pytest.fixture
def context(desk: FakeDesk) -> Context:
    made: Any = desk
    return Context(FakeMachine(), snapshots=lambda: made)


def test_a_snapshot_is_begun_followed_and_cancelled(context: Context, desk: FakeDesk) -> None:
    assert perform(context, "x-minivmm-query-snapshot", {}) == {"status": "none"}
    perform(context, "x-minivmm-snapshot", {"directory": "/a/b", "base": "/a/c", "track": True})
    assert desk.asked == [("/a/b", "/a/c", True)]
    assert perform(context, "x-minivmm-query-snapshot", {}) == {
        "status": "active",
        "plugged": 0,
        "written": 0,
        "passes": 0,
        "seconds": 0.0,
    }
    perform(context, "x-minivmm-cancel-snapshot", {})
    assert desk.asked[1:] == ["cancel"]


def test_how_it_ended_is_told(context: Context, desk: FakeDesk) -> None:
    desk.progress = Progress("failed", pause=0.5, error="why")
    found = perform(context, "x-minivmm-query-snapshot", {})
    assert isinstance(found, dict)
    assert (found["status"], found["pause"], found["error"]) == ("failed", 0.5, "why")


@pytest.mark.parametrize("wish", [{"directory": "s"}, {"directory": "/s", "base": "t"}])
def test_relative_directories_are_refused(context: Context, wish: dict[str, str]) -> None:
    with pytest.raises(Refused, match="absolute"):
        perform(context, "x-minivmm-snapshot", wish)


def test_a_machine_without_a_desk_cannot_be_saved() -> None:
    with pytest.raises(Refused, match="cannot be saved"):
        perform(Context(FakeMachine()), "x-minivmm-cancel-snapshot", {})
