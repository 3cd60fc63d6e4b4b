"""Exits are told while somebody follows them, and served by the plain path otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minivmm.spec.platform import SERIAL_PORT
from minivmm.trace import Detail, Event

LINE_STATUS = SERIAL_PORT + 5


def follow(rig: Any) -> tuple[list[Event], Callable[[], None]]:
    seen: list[Event] = []
    stops: list[Callable[[], None]] = []

    def sink(event: Event) -> None:
        if event.name == "exit":
            seen.append(event)

    rig.locked(lambda: stops.append(rig.machine.trace.follow(sink, Detail.EXITS)))
    return seen, stops[0]


def test_every_exit_is_told_with_place_value_and_duration(rig: Any, wait: Any) -> None:
    vcpu = rig.vcpus[0]
    vcpu.script_out(SERIAL_PORT, b"A")
    vcpu.script_in(LINE_STATUS)
    vcpu.script_mmio_write(0xC000_0000, 4, 0x1234)
    vcpu.script_mmio_read(0xC000_0000, 4)
    seen, _ = follow(rig)

    rig.start()
    wait(lambda: len(seen) == 4)

    out, inward, write, read = (dict(event.fields) for event in seen)
    assert {event.source for event in seen} == {"vcpu0"}
    assert all(fields.pop("seconds") >= 0 for fields in (out, inward, write, read))
    assert out == {"kind": "io-out", "port": SERIAL_PORT, "size": 1, "count": 1, "value": "0x41"}
    assert inward == {"kind": "io-in", "port": LINE_STATUS, "size": 1, "count": 1, "value": "0x60"}
    assert write == {"kind": "mmio-write", "gpa": 0xC000_0000, "size": 4, "value": "0x1234"}
    assert read.pop("value").startswith("0x")
    assert read == {"kind": "mmio-read", "gpa": 0xC000_0000, "size": 4}


def test_the_exit_that_ends_a_machine_is_told(rig: Any) -> None:
    rig.vcpus[0].script_shutdown()
    seen, _ = follow(rig)

    rig.start()

    assert rig.outcome.state == "internal-error"
    assert seen[-1].fields["kind"] == "shutdown"


def test_nobody_follows_nobody_is_asked(rig: Any) -> None:
    plain = rig.machine._group.serve

    _, stop = follow(rig)
    followed = rig.machine._group.serve
    rig.locked(stop)

    assert followed is not plain
    assert rig.machine._group.serve is plain


def test_the_machines_life_is_in_the_ring(rig: Any) -> None:
    rig.start()
    rig.locked(rig.machine.pause)
    rig.locked(rig.machine.resume)
    rig.locked(rig.machine.request_quit)

    events = [event for event in rig.machine.trace.recent() if event.source == "machine"]
    assert [event.name for event in events] == ["pause", "resume", "end"]
    assert events[-1].fields["outcome"] == "shutdown"


def test_the_guests_clock_runs(rig: Any) -> None:
    first = rig.machine.guest_clock()
    second = rig.machine.guest_clock()

    assert first is not None and second is not None
    assert 0 <= first <= second
