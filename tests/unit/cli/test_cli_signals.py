"""Signals held back while something is made or removed."""

import os
import signal

import pytest

from minivmm.cli.signals import ENDING, HeldSignals


class Came(Exception):
    """A signal's handler ran."""


@pytest.fixture(params=ENDING, ids=lambda number: number.name)
def number(request: pytest.FixtureRequest) -> signal.Signals:
    found: signal.Signals = request.param

    def come(*_: object) -> None:
        raise Came

    before = signal.signal(found, come)
    request.addfinalizer(lambda: signal.signal(found, before))
    return found


def test_a_held_signal_comes_at_the_end_even_if_handlers_were_taken_away(
    number: signal.Signals,
) -> None:
    steps: list[str] = []

    with pytest.raises(Came), HeldSignals():
        os.kill(os.getpid(), number)
        steps.append("made")
        signal.signal(number, signal.SIG_DFL)  # as asyncio leaves it
        steps.append("removed")

    assert steps == ["made", "removed"]


def test_an_allowed_signal_comes_at_once_and_what_was_made_is_removed(
    number: signal.Signals,
) -> None:
    steps: list[str] = []

    with pytest.raises(Came), HeldSignals() as signals:
        try:
            with signals.allowed():
                os.kill(os.getpid(), number)
                steps.append("not reached")
        finally:
            os.kill(os.getpid(), number)
            steps.append("removed")

    assert steps == ["removed"]
