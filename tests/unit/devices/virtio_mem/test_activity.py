"""What a device remembers of its driver: times, answers, runs of answers; never more than that."""

from __future__ import annotations

import pytest

from minivmm.devices.virtio_mem.activity import Activity
from minivmm.spec.virtio_mem import Feature, RequestType, ResponseType

PLUG, UNPLUG, UNPLUG_ALL, STATE = RequestType
ACK, NACK, BUSY, ERROR = ResponseType


class Clock:
    """Time as the test wants it."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def activity(clock: Clock) -> Activity:
    return Activity(clock)


def test_nothing_has_happened_at_first(activity: Activity) -> None:
    assert activity.target_at == 100.0
    assert activity.config_at is None
    assert activity.request_at is None
    assert activity.progress_at is None
    assert activity.run is None
    assert not activity.answers


def test_each_kind_of_event_has_its_time(activity: Activity, clock: Clock) -> None:
    for now, act in (
        (101.0, lambda: activity.target_changed(64)),
        (102.0, activity.config_sent),
        (103.0, lambda: activity.answered(PLUG, ACK, 2)),
        (104.0, lambda: activity.answered(UNPLUG, BUSY, 1)),
        (105.0, lambda: activity.answered(STATE, ACK, 1)),
    ):
        clock.now = now
        act()

    assert activity.target_at == 101.0
    assert activity.target == 64
    assert activity.config_at == 102.0
    assert activity.plug_at == activity.progress_at == 103.0
    assert activity.unplug_at == activity.change_at == 104.0
    assert activity.request_at == 105.0


def test_answers_and_blocks_are_counted_from_the_last_target_on(activity: Activity) -> None:
    activity.answered(PLUG, ACK, 5)
    activity.target_changed(0)

    activity.answered(UNPLUG, ACK, 3)
    activity.answered(PLUG, ACK, 1)
    activity.answered(PLUG, NACK, 7)

    assert activity.answers == {("UNPLUG", "ACK"): 1, ("PLUG", "ACK"): 1, ("PLUG", "NACK"): 1}
    assert activity.moved == -2


def test_equal_answers_make_a_run_and_another_one_begins_the_next(
    activity: Activity, clock: Clock
) -> None:
    for at, answer in enumerate((ACK, BUSY, BUSY, BUSY)):
        clock.now = float(at)
        activity.answered(PLUG, answer, at, "no memory" if answer is BUSY else "")

    run = activity.run
    assert run is not None
    assert (run.answer, run.times, run.began) == (BUSY, 3, 1.0)
    assert (run.request, run.blocks, run.why) == (PLUG, 3, "no memory")

    activity.answered(UNPLUG, ACK, 1)
    assert activity.run is not None
    assert (activity.run.answer, activity.run.times) == (ACK, 1)


def test_state_and_unknown_requests_do_not_end_a_run(activity: Activity) -> None:
    activity.answered(PLUG, BUSY, 1)
    activity.answered(STATE, ACK, 1)
    activity.answered(77, ERROR, 1)

    assert activity.run is not None
    assert activity.run.answer is BUSY
    assert activity.answers == {("PLUG", "BUSY"): 1, ("STATE", "ACK"): 1}


def test_a_new_driver_starts_with_a_clean_slate(activity: Activity) -> None:
    activity.answered(PLUG, ERROR, 1)
    activity.features_refused(Feature.UNPLUGGED_INACCESSIBLE)
    activity.driver_gone()

    assert activity.run is None
    assert activity.missing_features == 0
    assert activity.answers == {("PLUG", "ERROR"): 1}  # still a fact about this target


def test_long_reasons_are_cut() -> None:
    activity = Activity()
    activity.answered(PLUG, BUSY, 1, "x" * 10_000)

    assert activity.run is not None
    assert len(activity.run.why) <= 200
