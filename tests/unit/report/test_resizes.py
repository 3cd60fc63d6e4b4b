"""Resizes are found in a trace, and their time is split."""

from __future__ import annotations

from typing import Any

import pytest

from minivmm.report.resizes import Resize, find_requests, find_resizes
from minivmm.units import MIB


def resizes(tape: Any) -> list[Resize]:
    story = tape.story()
    return find_resizes(story, story.devices[0], find_requests(story, "vmem0"))


def test_grow_ends_when_the_plugged_size_is_the_target(tape: Any) -> None:
    grow, shrink = resizes(tape)

    assert (grow.before, grow.target, grow.after) == (0, 256 * MIB, 256 * MIB)
    assert grow.outcome == "done"
    assert grow.seconds == pytest.approx(0.232)  # 11.0 to the second answer
    assert (shrink.before, shrink.target, shrink.after) == (256 * MIB, 0, 128 * MIB)
    assert shrink.outcome == "unfinished"


def test_time_is_split_into_host_device_and_driver(tape: Any) -> None:
    grow = resizes(tape)[0]

    assert grow.host == pytest.approx(0.04)
    assert grow.device_share == pytest.approx(0.004)
    assert grow.driver == pytest.approx(0.232 - 0.044)
    assert grow.wake == pytest.approx(0.1)


def test_target_that_another_replaces_did_not_end(tape: Any, new_tape: Any) -> None:
    two = new_tape()
    two.resize(11.0, 256 * MIB)
    two.exchange(11.1, "PLUG", 0, 64 * MIB)
    two.resize(12.0, 64 * MIB)

    first, second = resizes(two)

    assert (first.outcome, first.ended) == ("replaced", 12.0)
    assert (second.outcome, second.seconds, second.moved) == ("done", 0.0, 0)


def test_what_became_of_memory_in_the_guest_belongs_to_its_resize(tape: Any) -> None:
    grow, shrink = resizes(tape)

    assert grow.memory == {"online": (11.4, 256 * MIB)}
    assert shrink.memory == {}


def test_requests_have_their_answers_and_durations(tape: Any) -> None:
    found = find_requests(tape.story(), "vmem0")

    assert [(one.type, one.answer) for one in found] == [
        ("PLUG", "ACK"),
        ("PLUG", "ACK"),
        ("UNPLUG", "ACK"),
        ("UNPLUG", "BUSY"),
    ]
    assert [one.seconds for one in found] == pytest.approx([0.012, 0.032, 0.002, 0.002])
    assert [one.host for one in found] == pytest.approx([0.01, 0.03, 0, 0])


def test_trace_without_the_requests_detail_still_has_answers(tape: Any) -> None:
    tape.lines[0]["details"] = []
    kept = ("resize", "answer")
    tape.lines[1:] = [line for line in tape.lines[1:] if line["name"] in kept]

    grow, _ = resizes(tape)

    assert grow.outcome == "done"
    assert len(grow.requests) == 2
    assert grow.requests[0].seconds is None
    assert grow.wake is None
