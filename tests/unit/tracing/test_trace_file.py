"""A trace into a file: complete, bounded, and no harm to the machine when the disk is full."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minivmm.errors import HostError
from minivmm.loop import EventLoop
from minivmm.testing.traced import Traced
from minivmm.tracing import file as file_module
from minivmm.tracing.file import TraceFile


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    made = EventLoop()
    yield made
    made.asyncio.close()


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_everything_from_header_to_end_is_in_the_file(
    traced: Traced, loop: EventLoop, tmp_path: Path
) -> None:
    path, said = tmp_path / "t.jsonl", list[str]()
    with TraceFile(path, said.append) as file:
        file.begin(traced.scene, loop)
        for block in range(100):
            traced.plug(block)

    header, *events = read(path)
    assert header["name"] == "work"
    assert sum(event["name"] == "answer" for event in events) == 100
    assert [event["n"] for event in events] == list(range(1, len(events) + 1))
    assert said == []
    assert not any(thread.name == "trace" for thread in threading.enumerate())


def test_events_are_there_soon(traced: Traced, loop: EventLoop, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    with TraceFile(path, lambda _: None) as file:
        file.begin(traced.scene, loop)
        traced.plug(0)

        deadline = time.monotonic() + 5
        while "interrupt" not in path.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize("place", [".", "missing/t.jsonl"])
def test_a_file_that_cannot_be_written_is_refused_at_once(tmp_path: Path, place: str) -> None:
    with pytest.raises(HostError, match="name another file with --trace"):
        TraceFile(tmp_path / place, lambda _: None)


def test_one_that_never_began_leaves_an_empty_file(tmp_path: Path) -> None:
    with TraceFile(tmp_path / "t.jsonl", lambda _: None):
        pass

    assert (tmp_path / "t.jsonl").read_bytes() == b""


def test_a_full_disk_costs_a_line_and_the_machine_runs_on(traced: Traced, loop: EventLoop) -> None:
    said: list[str] = []
    with TraceFile(Path("/dev/full"), said.append) as file:
        file.begin(traced.scene, loop)
        traced.plug(0)
        deadline = time.monotonic() + 5
        while not said:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        traced.plug(1)

    assert said[0] == "trace: cannot write /dev/full: No space left on device: events are left out"
    assert len(said) == 2
    assert "events are missing in /dev/full" in said[1]


def test_once_the_disk_has_room_again_the_gap_is_told_and_no_line_is_half(
    traced: Traced, loop: EventLoop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, said, full = tmp_path / "t.jsonl", list[str](), threading.Event()
    write = os.write

    def write_if_there_is_room(fd: int, data: bytes) -> int:
        if not full.is_set():
            return write(fd, data)
        if len(data) > 10:
            return write(fd, data[:10])  # the disk takes a little more at first
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file_module.os, "write", write_if_there_is_room)
    with TraceFile(path, said.append) as file:
        file.begin(traced.scene, loop)
        traced.plug(0)
        wait_for(lambda: "interrupt" in path.read_text())
        whole = path.read_text()
        full.set()
        traced.plug(1)
        wait_for(lambda: said)
        wait_for(lambda: path.read_text() == whole)
        full.clear()
        traced.plug(2)

    _, *events = read(path)
    dropped = [event["count"] for event in events if event["name"] == "dropped"]
    numbers = [event["n"] for event in events]
    assert sum(dropped) == 7  # all that the second request had to tell
    assert f"{sum(dropped)} events are missing in {path}" in said[-1]
    assert numbers == sorted(set(numbers))
    assert events[-1]["name"] == "interrupt"


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
