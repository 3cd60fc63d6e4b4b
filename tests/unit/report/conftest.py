"""A trace written by hand: one device that grows by 256 MiB, waits, and shrinks again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from minivmm.report.story import Story, story_of
from minivmm.units import GIB, MIB

BASE = 4 * GIB


class Tape:
    """Builds the lines of a trace of vmem0, which starts empty."""

    def __init__(self, **header: object) -> None:
        self.lines: list[dict[str, object]] = [
            {
                "schema": 1,
                "minivmm": "0.1.0",
                "name": "work",
                "clock": {"wall": 1764000000.0, "monotonic": 86400.0},
                "t": 10.0,
                "details": ["requests"],
                "filter": [],
                "devices": [
                    {
                        "id": "vmem0",
                        "type": "virtio-mem",
                        "queues": 1,
                        "memaddr": BASE,
                        "block-size": 2 * MIB,
                        "region-size": 4 * GIB,
                        "node": 0,
                        "state": {"plugged-size": 0, "requested-size": 0, "usable-size": 0},
                        "plugged": [],
                        "plugged-complete": True,
                    },
                    {"id": "rng0", "type": "virtio-rng", "queues": 1, "state": {}},
                ],
            }
            | header
        ]
        self.plugged = 0
        self.requested = 0
        self.requests = 0

    def event(self, t: float, name: str, **fields: object) -> None:
        """One more event of vmem0."""
        spelled = {key.replace("_", "-"): value for key, value in fields.items()}
        state = {
            "plugged-size": self.plugged,
            "requested-size": self.requested,
            "usable-size": self.requested,
        }
        line = {"n": len(self.lines), "t": t, "source": "vmem0", "name": name}
        self.lines.append(line | {"state": state} | spelled)

    def resize(self, t: float, size: int) -> None:
        """The host wants `size`; the configuration interrupt leaves 1 ms later."""
        self.requested = size
        self.event(t, "resize", requested_size=size, usable_size=size)
        self.event(t + 0.001, "config")

    def exchange(
        self, t: float, kind: str, offset: int, size: int, *, answer: str = "ACK", host: float = 0.0
    ) -> None:
        """A request that takes 2 ms and `host` seconds of work on host memory."""
        self.requests += 1
        what = {"gpa": BASE + offset, "blocks": size // (2 * MIB), "size": size}
        common: dict[str, object] = {"id": self.requests}
        self.event(t, "chain", queue=0, kick=self.requests, readable=24, writable=10, **common)
        self.event(t, "request", type=kind, **what, **common)
        if host:
            self.event(t + host, "populate", seconds=host, gpa=BASE + offset, size=size, **common)
        if answer == "ACK":
            self.plugged += size if kind == "PLUG" else -size
        took = 0.002 + host
        self.event(
            t + took, "answer", type=kind, answer=answer, plugged=self.plugged, **what, **common
        )
        self.event(t + took, "used", queue=0, written=10, seconds=took, **common)

    def text(self) -> str:
        """The file."""
        return "".join(json.dumps(line) + "\n" for line in self.lines)

    def story(self) -> Story:
        """The same, read."""
        return story_of(self.lines[0], self.lines[1:], "tape")


def grow_and_shrink() -> Tape:
    tape = Tape()
    tape.resize(11.0, 256 * MIB)
    tape.exchange(11.101, "PLUG", 0, 128 * MIB, host=0.01)
    tape.exchange(11.2, "PLUG", 128 * MIB, 128 * MIB, host=0.03)
    tape.event(11.3, "memory", what="online", gpa=BASE, size=128 * MIB)
    tape.event(11.4, "memory", what="online", gpa=BASE + 128 * MIB, size=128 * MIB)
    tape.resize(12.0, 0)
    tape.exchange(12.05, "UNPLUG", 128 * MIB, 128 * MIB)
    tape.exchange(12.1, "UNPLUG", 0, 126 * MIB, answer="BUSY")
    return tape


@pytest.fixture
def tape() -> Tape:
    return grow_and_shrink()


@pytest.fixture
def trace_file(tape: Tape, tmp_path: Path) -> Path:
    path = tmp_path / "work.jsonl"
    path.write_text(tape.text())
    return path


@pytest.fixture
def new_tape() -> Callable[..., Tape]:
    return Tape
