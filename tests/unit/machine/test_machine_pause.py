"""stop and cont: vCPUs park at a clean point, wherever they are, and go on where they were."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from minivmm.spec.platform import RESET_PORT, RESET_VALUE, SERIAL_PORT

IDLE = 0.03
"""Seconds after which something that waits is taken to wait for good."""


@pytest.fixture(params=[1, 4])
def running(request: pytest.FixtureRequest, make_rig: Any) -> Any:
    return make_rig(cpus=request.param).start()


def test_a_paused_guest_does_nothing_until_resumed(running: Any) -> None:
    running.locked(running.machine.pause)
    for vcpu in running.vcpus:
        vcpu.script_out(SERIAL_PORT, b"x")

    assert running.machine.state == "paused"
    assert not any(vcpu.wait_idle(IDLE) for vcpu in running.vcpus)
    assert bytes(running.output) == b""

    running.locked(running.machine.resume)

    assert all(vcpu.wait_idle() for vcpu in running.vcpus)
    assert running.machine.state == "running"
    assert len(running.output) == len(running.vcpus)
    assert running.names() == ["STOP", "RESUME"]


def test_pause_and_resume_are_harmless_when_repeated(running: Any) -> None:
    machine = running.machine

    running.locked(machine.resume, machine.pause, machine.pause, machine.resume, machine.resume)

    running.vcpus[-1].script_out(SERIAL_PORT, b"x")
    assert running.vcpus[-1].wait_idle()
    assert running.names() == ["STOP", "RESUME"]


def test_many_quick_pauses_lose_nobody(running: Any) -> None:
    for vcpu in running.vcpus:
        for _ in range(100):
            vcpu.script_out(SERIAL_PORT, b"x")

    for _ in range(50):
        running.locked(running.machine.pause)
        running.locked(running.machine.resume)

    assert all(vcpu.wait_idle() for vcpu in running.vcpus)
    assert len(running.output) == 100 * len(running.vcpus)


def test_pause_from_within_device_code(running: Any) -> None:
    """What a device listener does, on the vCPU's own thread: the access is finished, then rest."""

    def pause(data: bytes) -> None:
        running.output += data
        running.machine.pause()

    running.machine.board.serial._output = pause
    running.vcpus[0].script_out(SERIAL_PORT, b"x")
    running.vcpus[0].script_out(SERIAL_PORT, b"y")

    assert not running.vcpus[0].wait_idle(IDLE)

    assert bytes(running.output) == b"x"
    assert running.machine.state == "paused"
    running.machine.board.serial._output = running.output.extend
    running.locked(running.machine.resume)
    assert running.vcpus[0].wait_idle()
    assert bytes(running.output) == b"xy"


def test_pause_while_a_vcpu_is_in_device_code(running: Any, wait: Any) -> None:
    entered, leave = threading.Event(), threading.Event()

    def stall(data: bytes) -> None:
        entered.set()
        assert leave.wait(5)
        running.output.extend(data)

    running.machine.board.serial._output = stall
    running.vcpus[0].script_out(SERIAL_PORT, b"x")
    assert entered.wait(5)

    running.loop.call_soon(running.machine.pause)
    leave.set()

    running.wait_for_event("STOP")
    running.vcpus[0].script_out(SERIAL_PORT, b"y")
    assert not running.vcpus[0].wait_idle(IDLE)
    assert bytes(running.output) == b"x"
    wait(lambda: not running.inside)


def test_reset_while_paused_stays_paused(running: Any) -> None:
    running.locked(running.machine.pause)

    running.locked(running.machine.request_reset)

    assert running.wait_for_event("RESET")["guest"] is False
    assert running.machine.state == "paused"
    running.vcpus[0].script_out(SERIAL_PORT, b"x")
    assert not running.vcpus[0].wait_idle(IDLE)
    running.locked(running.machine.resume)
    assert running.vcpus[0].wait_idle()


def test_a_guest_that_asked_for_reset_as_it_was_paused_stays_paused(running: Any) -> None:
    vcpu = running.vcpus[0]
    with running.loop.lock:
        vcpu.script_out(RESET_PORT, bytes([RESET_VALUE]))
        running.machine.pause()

    running.locked(running.machine.resume)

    assert running.wait_for_event("RESET")["guest"] is True
    assert running.machine.state == "running"
    assert vcpu.wait_idle()


def test_quit_while_paused(running: Any) -> None:
    running.locked(running.machine.pause)

    running.locked(running.machine.request_quit)

    assert running.outcome.state == "shutdown"
    assert running.machine.state == "shutdown"


def test_inspect_of_a_paused_machine_is_plain_data(running: Any) -> None:
    running.locked(running.machine.pause)
    found: list[dict[str, Any]] = []

    running.locked(lambda: found.append(running.machine.inspect()))

    tree = json.loads(json.dumps(found[0]))
    assert tree["state"] == "paused"
    assert [vcpu["index"] for vcpu in tree["vcpus"]] == list(range(len(running.vcpus)))
    assert set(tree["board"]["devices"]) == {"console0", "vmem0"}
