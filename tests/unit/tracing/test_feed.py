"""What a follower gets: a header, events with times and sizes, and how many it missed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from minivmm import __version__
from minivmm.testing.traced import BASE, BLOCK, Traced
from minivmm.tracing import feed as feed_module
from minivmm.tracing.feed import CAPACITY, Feed
from minivmm.tracing.wish import Wish
from minivmm.units import GIB


def lines(feed: Feed) -> list[dict[str, Any]]:
    return [json.loads(line) for line in feed.take(1 << 20)]


def follow(traced: Traced, *patterns: str, woken: list[int] | None = None) -> Feed:
    counts = [] if woken is None else woken
    return Feed(traced.scene, Wish(patterns=patterns), lambda: counts.append(1))


def test_the_header_says_what_the_events_are_about(traced: Traced) -> None:
    traced.plug(0, 2)
    traced.plug(8)

    header = json.loads(follow(traced, "vmem0").header)

    assert header["t"] > 0
    assert header | {"t": 0} == {
        "schema": 1,
        "minivmm": __version__,
        "name": "work",
        "cpus": 2,
        "spec": {"memory": GIB},
        "devices": [
            {
                "id": "vmem0",
                "type": "virtio-mem",
                "queues": 1,
                "memaddr": BASE,
                "block-size": BLOCK,
                "region-size": GIB,
                "node": 0,
                "plugged": [[BASE, 2 * BLOCK], [BASE + 8 * BLOCK, BLOCK]],
                "plugged-complete": True,
                "state": {"plugged-size": 3 * BLOCK, "requested-size": GIB, "usable-size": GIB},
            }
        ],
        "clock": {"wall": traced.trace.wall, "monotonic": traced.trace.began},
        "t": 0,
        "details": ["requests"],
        "filter": ["vmem0"],
    }


def test_plugged_ranges_of_a_header_are_bounded(
    traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minivmm.tracing.scene.MOST_RANGES", 2)
    for block in (0, 2, 4):
        traced.plug(block)

    (device,) = json.loads(follow(traced).header)["devices"]

    assert len(device["plugged"]) == 2
    assert not device["plugged-complete"]


def test_events_have_numbers_times_and_the_sizes_after_them(traced: Traced) -> None:
    feed = follow(traced)

    traced.plug(0, 2)

    events = lines(feed)
    assert [event["n"] for event in events] == list(range(1, len(events) + 1))
    times = [event["t"] for event in events]
    assert times == sorted(times)
    assert all(abs(event["guest"] - 7.0) < 5 for event in events)
    sizes = {event["name"]: event["state"]["plugged-size"] for event in events}
    assert (sizes["request"], sizes["answer"]) == (0, 2 * BLOCK)
    assert events[-1]["state"]["requested-size"] == GIB


def test_guest_time_is_absent_where_there_is_none(traced: Traced) -> None:
    traced.clock = None
    feed = follow(traced)

    traced.plug(0)

    assert all("guest" not in event for event in lines(feed))


def test_the_guest_clock_is_read_once_a_second_not_once_an_event(traced: Traced) -> None:
    read: list[int] = []

    def clock() -> float:
        read.append(1)
        return 7.0

    traced.scene._clock = clock
    follow(traced)
    for block in range(20):
        traced.plug(block)

    assert len(read) == 1


def test_a_filter_leaves_gaps_in_the_numbers(traced: Traced) -> None:
    feed = follow(traced, ":request", ":answer")

    traced.plug(0)

    assert [(event["n"], event["name"]) for event in lines(feed)] == [(3, "request"), (5, "answer")]


def test_keys_are_spelled_as_qmp_spells_them(traced: Traced) -> None:
    feed = follow(traced)

    traced.trace.emit("machine", "something", two_words=1)

    assert lines(feed)[0]["two-words"] == 1


def test_texts_and_durations_are_cut_to_what_is_fit_to_print(traced: Traced) -> None:
    feed = follow(traced)

    traced.trace.emit("agent", "bad-line", line="x" * 10_000, seconds=1 / 3)

    (event,) = lines(feed)
    assert len(event["line"]) == feed_module.LONGEST_TEXT
    assert event["seconds"] == 0.3333333


def test_a_follower_is_woken_once_for_all_that_waits(traced: Traced) -> None:
    woken: list[int] = []
    feed = follow(traced, woken=woken)

    traced.plug(0)
    traced.plug(1)
    assert len(woken) == 1
    lines(feed)
    traced.plug(2)
    assert len(woken) == 2


def test_a_slow_follower_misses_events_and_is_told_how_many(traced: Traced) -> None:
    feed = follow(traced, ":tick")
    for number in range(CAPACITY + 5):
        traced.trace.emit("machine", "tick", number=number)

    first = [json.loads(line) for line in feed.take(10)]
    traced.trace.emit("machine", "tick", number=-1)
    rest = lines(feed)

    assert [event["number"] for event in first] == list(range(10))
    assert feed.lost == 5
    dropped, last = rest[-2:]
    assert (dropped["source"], dropped["name"], dropped["count"]) == ("trace", "dropped", 5)
    assert last["number"] == -1
    assert len(first) + len(rest) == CAPACITY + 2
    numbers = [event["n"] for event in first + rest]
    assert numbers == sorted(set(numbers))


def test_what_is_missing_at_the_end_is_told_as_well(traced: Traced) -> None:
    feed = follow(traced, ":tick")
    for _ in range(CAPACITY + 2):
        traced.trace.emit("machine", "tick")

    events = lines(feed)

    assert events[-1]["name"] == "dropped"
    assert events[-1]["count"] == 2
    assert lines(feed) == []


def test_closed_it_costs_the_machine_nothing_any_more(traced: Traced) -> None:
    feed = follow(traced)
    traced.plug(0)

    feed.close()
    feed.close()
    before = len(lines(feed))
    traced.plug(1)

    assert before == 8 - 1  # protection is off: there is nothing to allow
    assert lines(feed) == []
    assert traced.function.transport._tap is None
