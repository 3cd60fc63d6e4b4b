"""A trace file is read whole, or refused with the line that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minivmm.errors import UsageError
from minivmm.report.story import read_story
from minivmm.units import GIB, MIB


def test_devices_and_events_of_a_trace(trace_file: Path) -> None:
    story = read_story(trace_file)

    (device,) = story.devices
    assert (device.id, device.memaddr, device.block_size) == ("vmem0", 4 * GIB, 2 * MIB)
    assert story.name == "work"
    assert story.begin == 10.0
    assert story.end == pytest.approx(12.102)
    assert len(story.of("vmem0")) == len(story.events)


def test_dropped_events_are_counted(tape: Any) -> None:
    for count in (3, 4):
        tape.lines.append(
            {"n": 99, "t": 12.5, "source": "trace", "name": "dropped", "count": count}
        )

    assert tape.story().dropped == 7


def test_trace_of_a_vmm_that_was_killed_ends_with_half_a_line(trace_file: Path) -> None:
    text = trace_file.read_text()
    trace_file.write_text(text[:-20])

    assert len(read_story(trace_file).events) == len(text.splitlines()) - 2


def test_trace_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text('{"schema": 1, "clock": {}}\n')

    with pytest.raises(UsageError, match="t is no trace: its header lacks"):
        read_story(path)


def test_event_that_is_none_is_shown(tape: Any) -> None:
    tape.lines.append({"name": "x"})

    with pytest.raises(UsageError, match=r"event .* lacks t, source or name"):
        tape.story()


def test_newer_schema_is_refused(new_tape: Any) -> None:
    with pytest.raises(UsageError, match="schema 2 is newer"):
        new_tape(schema=2).story()


def test_device_without_its_sizes_is_refused(tape: Any) -> None:
    del tape.lines[0]["devices"][0]["block-size"]

    with pytest.raises(UsageError, match="without 'block-size'"):
        tape.story()


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none cannot be read: No such file"):
        read_story(tmp_path / "none")
