"""Work is done under the lock if such work took no time lately; never more than is harmless."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from minivmm.devices.virtio_mem.pace import LEAST, MOST, QUICK, Pace
from minivmm.units import GIB, MIB


class Clock:
    """Shows 0, and stands still but for the work."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> Callable[[], None]:
        def pass_by() -> None:
            self.now += seconds

        return pass_by


@pytest.mark.parametrize(
    ("length", "seconds", "expected"),
    [
        pytest.param(128 * MIB, 3e-6, MOST, id="untouched"),
        pytest.param(128 * MIB, 346e-6, MOST, id="huge-pages"),
        pytest.param(128 * MIB, 1e-3, 64 * MIB, id="some-small-pages"),
        pytest.param(128 * MIB, 8e-3, LEAST, id="small-pages"),
        pytest.param(GIB, 0.0, MOST, id="no-time"),
        pytest.param(17 * MIB, QUICK, 17 * MIB, id="just-quick"),
    ],
)
def test_what_may_be_done_at_once_follows_from_the_last_time(
    length: int, seconds: float, expected: int
) -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.at_once == LEAST

    pace.timed(length, clock.work(seconds))()

    assert pace.at_once == expected


def test_slow_work_makes_careful_again() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.timed(GIB, clock.work(0.0))()

    pace.timed(MOST, clock.work(0.01))()

    assert pace.at_once == LEAST


def test_work_that_fails_teaches_nothing() -> None:
    pace = Pace()

    def fail() -> None:
        raise OSError("no memory")

    with pytest.raises(OSError, match="no memory"):
        pace.timed(GIB, fail)()

    assert pace.at_once == LEAST
