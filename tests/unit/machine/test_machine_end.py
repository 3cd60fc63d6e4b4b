"""How machines end: an outcome, one line that says why, one SHUTDOWN event."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest

from minivmm.errors import HostError
from minivmm.kvm.abi import EXIT_EFAULT, Exit
from minivmm.kvm.vcpu import KICK_SIGNAL
from minivmm.spec.platform import (
    KEYBOARD_PORT,
    RESET_PORT,
    RESET_VALUE,
    SERIAL_PORT,
    SLEEP_CONTROL_PORT,
)

POWER_OFF = b"\x34"  # (5 << 2) | 0x20, what Linux writes
RESET = bytes([RESET_VALUE])
PANIC = b"[    1.5] Kernel panic - not syncing: no init\r\n"


def test_power_off(rig: Any) -> None:
    rig.vcpus[0].script_out(SLEEP_CONTROL_PORT, POWER_OFF)

    rig.start()

    assert (rig.outcome.state, rig.outcome.reason) == ("shutdown", "guest powered off")
    assert not rig.outcome.died
    assert rig.machine.state == "shutdown"
    assert rig.events[-1] == ("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})


def test_nothing_runs_after_the_end(rig4: Any) -> None:
    rig4.vcpus[2].script_out(SLEEP_CONTROL_PORT, POWER_OFF)
    rig4.start()
    assert rig4.outcome

    for vcpu in rig4.vcpus:
        vcpu.script_out(SERIAL_PORT, b"ghost")

    assert not rig4.vcpus[0].wait_idle(0.05)
    assert bytes(rig4.output) == b""


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        (Exit.SHUTDOWN, "triple-faulted"),
        (Exit.INTERNAL_ERROR, "internal error"),
        (Exit.FAIL_ENTRY, "refused to enter"),
        (EXIT_EFAULT, "out of memory"),
        (Exit.MEMORY_FAULT, "out of memory"),
        (Exit.SYSTEM_EVENT, "unexpected exit"),
        (200, "exit 200"),
    ],
)
def test_exits_that_end_the_guest_say_why_in_one_line(rig: Any, reason: int, text: str) -> None:
    rig.vcpus[0].script_exit(reason)

    rig.start()

    assert rig.outcome.state == "internal-error"
    assert rig.outcome.died
    assert text in rig.outcome.reason
    assert "cpu0" in rig.outcome.reason
    assert "\n" not in rig.outcome.reason
    assert rig.events[-1] == ("SHUTDOWN", {"guest": False, "reason": "host-error"})


def test_a_refusing_kvm_ends_the_machine(rig4: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise HostError("cannot run cpu3: KVM_RUN failed: Bad address")

    monkeypatch.setattr(rig4.vcpus[3], "run", fail)

    rig4.start()

    assert rig4.outcome.state == "internal-error"
    assert rig4.outcome.reason == "cannot run cpu3: KVM_RUN failed: Bad address"


@pytest.mark.parametrize("where", ["device", "console"])
def test_a_bug_in_device_code_ends_the_machine(
    rig: Any, where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("first line\nsecond line")

    name = "write" if where == "device" else "_output"
    monkeypatch.setattr(rig.machine.board.serial, name, fail)
    rig.vcpus[0].script_out(SERIAL_PORT, b"x")

    rig.start()

    assert rig.outcome.state == "internal-error"
    assert "KeyError" in rig.outcome.reason
    assert "test_machine_end.py" in rig.outcome.reason
    assert "\n" not in rig.outcome.reason
    assert "Traceback" in caplog.text


def test_panic_and_reset_is_a_panicked_guest(rig: Any) -> None:
    rig.vcpus[0].script_out(SERIAL_PORT, PANIC)
    rig.vcpus[0].script_out(SERIAL_PORT, b"CPU: 0 PID: 1 Comm: swapper\r\n")
    rig.vcpus[0].script_out(KEYBOARD_PORT, b"\xfe")

    rig.start()

    assert rig.outcome.state == "guest-panicked"
    assert rig.outcome.reason == "guest panicked: no init"
    assert rig.names() == ["GUEST_PANICKED", "SHUTDOWN"]
    assert rig.events[-1][1] == {"guest": True, "reason": "guest-panic"}
    assert rig.output.endswith(b"swapper\r\n")


def test_panic_alone_lets_the_report_go_on(rig: Any) -> None:
    rig.vcpus[0].script_out(SERIAL_PORT, PANIC + b"Call Trace:\r\n")

    rig.start()

    assert rig.vcpus[0].wait_idle()
    assert rig.names() == ["GUEST_PANICKED"]
    assert rig.machine.state == "running"


def test_a_reset_by_the_host_forgives_the_panic(rig: Any) -> None:
    rig.vcpus[0].script_out(SERIAL_PORT, PANIC)
    rig.start()
    assert rig.vcpus[0].wait_idle()

    rig.locked(rig.machine.request_reset)
    rig.wait_for_event("RESET")
    rig.vcpus[0].script_out(RESET_PORT, RESET)

    assert rig.wait_for_event("RESET", 2)["guest"] is True
    assert rig.outcomes == []


def test_a_crash_kernel_may_reset_the_machine(rig: Any) -> None:
    rig.vcpus[0].script_out(SERIAL_PORT, PANIC + b"minivmm: init\r\n")
    rig.vcpus[0].script_out(RESET_PORT, RESET)

    rig.start()

    assert rig.wait_for_event("RESET")["guest"] is True
    assert rig.outcomes == []


def test_quit_once_and_twice(rig4: Any) -> None:
    rig4.start()

    rig4.locked(rig4.machine.request_quit, rig4.machine.request_quit)

    assert len(rig4.outcomes) == 1
    assert (rig4.outcome.state, rig4.outcome.reason) == ("shutdown", "host asked to quit")
    assert rig4.events == [("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})]


def test_the_first_end_counts(rig: Any) -> None:
    rig.start()
    rig.locked(rig.machine.request_quit)

    rig.vcpus[0].script_shutdown()
    rig.locked(rig.machine.resume, rig.machine.pause, rig.machine.request_reset)
    rig.thread.settle()

    assert rig.machine.state == "shutdown"
    assert rig.names() == ["SHUTDOWN"]


def test_quit_before_the_start_keeps_the_guest_from_running(rig: Any) -> None:
    rig.locked(rig.machine.request_quit)

    rig.start()

    assert rig.machine.state == "shutdown"
    assert rig.vcpus[0].runs == 0


def test_quit_while_a_vcpu_is_in_device_code(rig: Any) -> None:
    entered, leave = threading.Event(), threading.Event()

    def stall(data: bytes) -> None:
        entered.set()
        assert leave.wait(5)

    rig.machine.board.serial._output = stall
    rig.vcpus[0].script_out(SERIAL_PORT, b"x")
    rig.vcpus[0].script_out(SERIAL_PORT, b"y")
    rig.start()
    assert entered.wait(5)

    rig.loop.call_soon(rig.machine.request_quit)
    leave.set()

    assert rig.outcome.state == "shutdown"


def test_the_power_button_is_an_interrupt_and_an_event(rig: Any) -> None:
    rig.start()

    rig.locked(rig.machine.request_powerdown)

    assert rig.names() == ["POWERDOWN"]
    assert rig.vm.irq_lines == {9: False}
    event = rig.vcpus[0].script_in(0x603)
    assert rig.vcpus[0].wait_idle()
    assert event.value == 1


def test_a_triple_fault_after_a_panic_is_still_the_panic(rig: Any) -> None:
    rig.vcpus[0].script_out(SERIAL_PORT, PANIC)
    rig.vcpus[0].script_shutdown()

    rig.start()

    assert rig.outcome.state == "guest-panicked"
    assert rig.outcome.reason == "guest panicked: no init"


def test_unreadable_registers_do_not_hide_the_reason(
    rig: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def describe() -> str:
        raise HostError("cannot read registers")

    monkeypatch.setattr(rig.vcpus[0], "describe", describe)
    rig.vcpus[0].script_shutdown()

    rig.start()

    assert "triple-faulted" in rig.outcome.reason
    assert "cannot read registers" in rig.outcome.reason


def test_a_kick_that_comes_after_the_end_does_no_harm(rig: Any) -> None:
    """A thread that ended for Python may still exist for the kernel."""
    masks: list[set[signal.Signals]] = []
    group = rig.machine._group
    run = group._main

    def observed(vcpu: object) -> None:
        run(vcpu)
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    group._main = observed
    rig.start()
    rig.machine.close()

    assert masks
    assert all(KICK_SIGNAL in mask for mask in masks)
