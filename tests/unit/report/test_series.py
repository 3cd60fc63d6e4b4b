"""The numbers that figures show."""

from __future__ import annotations

from typing import Any

import pytest

from minivmm.report import series
from minivmm.report.resizes import find_requests
from minivmm.units import GIB, MIB


def test_sizes_over_time_span_the_whole_trace(tape: Any) -> None:
    story = tape.story()

    found = series.sizes(story, story.devices[0])

    assert found.requested[:3] == [(10.0, 0), (11.0, 256 * MIB), (12.0, 0)]
    assert [size for _, size in found.plugged] == [
        0,
        128 * MIB,
        256 * MIB,
        128 * MIB,
        128 * MIB,
    ]
    assert found.plugged[-1][0] == story.end


def test_block_map_follows_plugs_and_unplugs(tape: Any) -> None:
    story = tape.story()
    device = story.devices[0]

    found = series.block_map(story, device, find_requests(story, "vmem0"))

    assert found is not None
    rows = len(found.cells)
    assert rows * found.piece >= 256 * MIB
    assert [row[0] for row in found.cells] == [0.0] * rows
    last = [row[-1] for row in found.cells]
    assert sum(last) * found.piece == 128 * MIB
    assert last == [1.0] * (rows // 2) + [0.0] * (rows // 2)
    assert found.times[0] == story.begin
    assert found.times[-1] == story.end


def test_block_map_starts_with_what_was_plugged_and_is_emptied_by_a_reset(new_tape: Any) -> None:
    tape = new_tape()
    tape.lines[0]["devices"][0]["plugged"] = [[4 * GIB, 64 * MIB]]
    tape.event(11.0, "status", status="ACKNOWLEDGE")
    tape.lines.append({"n": 9, "t": 12.0, "source": "machine", "name": "reset"})
    tape.event(13.0, "status", status="ACKNOWLEDGE")
    story = tape.story()

    found = series.block_map(story, story.devices[0], [])

    assert found is not None
    assert {row[0] for row in found.cells} == {1.0}
    assert {row[-1] for row in found.cells} == {0.0}


def test_no_block_map_without_a_known_beginning(tape: Any) -> None:
    tape.lines[0]["devices"][0]["plugged-complete"] = False
    story = tape.story()

    assert series.block_map(story, story.devices[0], []) is None


def test_a_huge_region_has_a_map_of_bounded_size(new_tape: Any) -> None:
    tape = new_tape()
    tape.lines[0]["devices"][0]["region-size"] = 1 << 44
    for at in range(500):
        tape.exchange(11 + at / 100, "PLUG", at * (1 << 34), 2 * MIB)
    story = tape.story()

    found = series.block_map(story, story.devices[0], find_requests(story, "vmem0"))

    assert found is not None
    assert len(found.cells) <= series.MAP_ROWS
    assert len(found.times) <= series.MAP_COLUMNS
    assert sum(row[-1] for row in found.cells) * found.piece == pytest.approx(1000 * MIB)


def test_quantiles_are_latencies_that_occurred() -> None:
    one = series.Latency("PLUG", tuple(float(at) for at in range(1, 101)))

    assert [one.quantile(share) for share in (0.5, 0.9, 0.99, 1.0)] == [50, 90, 99, 100]
    assert series.Latency("PLUG", (7.0,)).quantile(0.5) == 7.0


def test_answers_by_kind(tape: Any) -> None:
    found = series.answers(find_requests(tape.story(), "vmem0"))

    assert found == {("PLUG", "ACK"): 2, ("UNPLUG", "ACK"): 1, ("UNPLUG", "BUSY"): 1}
