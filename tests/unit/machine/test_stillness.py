"""quiesce and unquiesce: everything stands still, what was under way has ended, and all goes on."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from minivmm.errors import Refused
from minivmm.spec.platform import RESET_PORT, RESET_VALUE, SERIAL_PORT

IDLE = 0.03
"""Seconds after which something that waits is taken to wait for good."""


class Still:
    """Has a rig's machine stand still."""

    def __init__(self, rig: Any) -> None:
        self.rig = rig
        self.came = threading.Event()

    def begin(self) -> Still:
        self.rig.locked(lambda: self.rig.machine.quiesce(self.came.set))
        return self

    def reached(self) -> Still:
        assert self.came.wait(5)
        return self

    def end(self) -> None:
        self.rig.locked(self.rig.machine.unquiesce)


@pytest.fixture(params=[1, 4])
def running(request: pytest.FixtureRequest, make_rig: Any) -> Any:
    return make_rig(cpus=request.param).start()


def test_no_vcpu_runs_and_the_state_stays(running: Any) -> None:
    still = Still(running).begin().reached()
    for vcpu in running.vcpus:
        vcpu.script_out(SERIAL_PORT, b"x")

    assert running.machine.state == "running"
    assert not any(vcpu.wait_idle(IDLE) for vcpu in running.vcpus)
    still.end()

    assert all(vcpu.wait_idle() for vcpu in running.vcpus)
    assert len(running.output) == len(running.vcpus)
    assert running.names() == []


def test_watchdogs_of_the_guest_are_told(running: Any) -> None:
    Still(running).begin().reached().end()

    assert [vcpu.debug.pauses for vcpu in running.vcpus] == [1] * len(running.vcpus)


def test_a_machine_that_was_not_started_stands_still_at_once(rig: Any) -> None:
    Still(rig).begin().reached().end()

    rig.start()

    rig.vcpus[0].script_out(SERIAL_PORT, b"x")
    assert rig.vcpus[0].wait_idle()


def test_a_paused_machine_is_still_paused_afterwards(running: Any) -> None:
    running.locked(running.machine.pause)

    Still(running).begin().reached().end()

    running.vcpus[0].script_out(SERIAL_PORT, b"x")
    assert not running.vcpus[0].wait_idle(IDLE)
    assert running.machine.state == "paused"
    running.locked(running.machine.resume)
    assert running.vcpus[0].wait_idle()


def test_pause_and_resume_meanwhile_count_afterwards(running: Any) -> None:
    vcpu = running.vcpus[0]
    still = Still(running).begin().reached()
    vcpu.script_out(SERIAL_PORT, b"x")
    running.locked(running.machine.pause, running.machine.resume)
    assert not vcpu.wait_idle(IDLE)
    running.locked(running.machine.pause)
    still.end()
    assert not vcpu.wait_idle(IDLE)

    running.locked(running.machine.resume)

    assert vcpu.wait_idle()


def test_a_reset_meanwhile_comes_afterwards(running: Any) -> None:
    still = Still(running).begin().reached()

    running.locked(running.machine.request_reset)

    running.thread.settle()
    assert "RESET" not in running.names()
    assert len(running.vcpus[0].states) == 1
    still.end()
    running.wait_for_event("RESET")
    assert len(running.vcpus[0].states) == 2
    running.vcpus[0].script_out(SERIAL_PORT, b"x")
    assert running.vcpus[0].wait_idle()


def test_a_reset_before_is_done_before(running: Any) -> None:
    still = Still(running)

    running.locked(running.machine.request_reset, lambda: running.machine.quiesce(still.came.set))

    still.reached()
    assert running.names() == ["RESET"]
    running.vcpus[0].script_out(SERIAL_PORT, b"x")
    assert not running.vcpus[0].wait_idle(IDLE)
    still.end()
    assert running.vcpus[0].wait_idle()


def test_a_guest_that_resets_just_then_is_reset_afterwards(rig: Any) -> None:
    rig.vcpus[0].script_out(RESET_PORT, bytes((RESET_VALUE,)))
    rig.start()
    still = Still(rig).begin().reached()
    still.end()

    rig.wait_for_event("RESET")


def test_only_one_at_a_time(running: Any) -> None:
    still = Still(running).begin().reached()

    with pytest.raises(Refused, match="saved or migrated already"):
        Still(running).begin()
    still.end()

    Still(running).begin().reached().end()


def test_releasing_twice_is_harmless(running: Any) -> None:
    running.locked(running.machine.unquiesce)
    still = Still(running).begin().reached()
    still.end()
    still.end()

    running.vcpus[0].script_out(SERIAL_PORT, b"x")
    assert running.vcpus[0].wait_idle()


def test_a_release_before_it_stands_still_takes_it_back(running: Any) -> None:
    still = Still(running)

    running.locked(lambda: running.machine.quiesce(still.came.set), running.machine.unquiesce)

    running.vcpus[0].script_out(SERIAL_PORT, b"x")
    assert running.vcpus[0].wait_idle()
    running.thread.settle()
    assert not still.came.is_set()


def test_a_machine_that_has_ended_cannot_be_saved(running: Any) -> None:
    running.locked(running.machine.request_quit)

    with pytest.raises(Refused, match="the VM is shutdown"):
        Still(running).begin()


def test_a_debugged_machine_cannot_be_saved(running: Any) -> None:
    from minivmm.kvm.debug import DebugFeatures

    running.locked(lambda: running.machine.debugger.attach(DebugFeatures()))

    with pytest.raises(Refused, match="a debugger is attached"):
        Still(running).begin()


def test_what_is_aside_of_the_lock_ends_before(running: Any, wait: Any) -> None:
    device = running.machine.memory_devices["vmem0"]
    may_end, told = threading.Event(), []
    running.locked(
        lambda: device.errands.aside(lambda: bool(may_end.wait(5)) and None, lambda: told.append(1))
    )

    still = Still(running).begin()

    assert not still.came.wait(IDLE)
    may_end.set()
    still.reached()
    assert told == [1]
    still.end()


def test_a_machine_that_ends_meanwhile_ends(running: Any) -> None:
    still = Still(running).begin().reached()

    running.locked(running.machine.request_quit)

    assert running.outcome.state == "shutdown"
    still.end()
    assert running.machine.state == "shutdown"
