"""Kicks: wherever the vCPU's thread is, run() comes back; never lost, never left behind."""

from __future__ import annotations

import ctypes
import errno
import threading
import time
from collections.abc import Callable

import pytest

from minivmm.errors import HostError
from minivmm.kvm import abi
from minivmm.kvm import vcpu as vcpu_module

pytestmark = pytest.mark.kvm

SPIN = bytes.fromhex("ebfe")
HALT = bytes.fromhex("f4")
TWO_OUTS = bytes.fromhex("e680 e681 ebfe")  # out 80h,al; out 81h,al; spin


@pytest.mark.parametrize("code", [SPIN, HALT], ids=["spinning", "halted"])
def test_kick_interrupts_a_thread_in_the_guest(
    boot: Callable, in_thread: Callable, code: bytes
) -> None:
    cpu = boot(code).cpu
    reasons: list[int] = []
    thread = in_thread(lambda: reasons.append(cpu.run()))
    time.sleep(0.05)
    assert thread.is_alive()

    cpu.kick()
    thread.join(5)

    assert reasons == [abi.Exit.INTR]
    assert cpu.run_page.immediate_exit == 0


def test_kick_before_run_returns_at_once_and_once(boot: Callable) -> None:
    cpu = boot(TWO_OUTS).cpu

    cpu.kick()

    assert cpu.run() == abi.Exit.INTR
    assert cpu.run() == abi.Exit.IO
    assert cpu.io.port == 0x80


def test_many_kicks_before_run_cost_one_return(boot: Callable) -> None:
    cpu = boot(TWO_OUTS).cpu

    for _ in range(5):
        cpu.kick()

    assert [cpu.run(), cpu.run()] == [abi.Exit.INTR, abi.Exit.IO]


def test_kick_after_an_exit_completes_the_instruction_first(boot: Callable) -> None:
    cpu = boot(TWO_OUTS).cpu
    cpu.run()

    cpu.kick()
    reason = cpu.run()

    assert reason == abi.Exit.INTR
    assert "rip=0x1002 " in cpu.describe()  # behind the first out
    assert cpu.run() == abi.Exit.IO
    assert cpu.io.port == 0x81


def test_no_kick_is_lost_in_a_storm(boot: Callable, in_thread: Callable) -> None:
    # inc ax; out 80h,al; jmp: the thread is now in the guest, now in Python
    cpu = boot(bytes.fromhex("40 e680 ebfb")).cpu
    wanted = 0
    seen = threading.Semaphore(0)

    def loop() -> None:
        served = 0
        while served < 300:
            cpu.run()
            if wanted != served:
                served = wanted
                seen.release()

    in_thread(loop)
    for number in range(1, 301):
        wanted = number
        cpu.kick()
        assert seen.acquire(timeout=5), f"kick {number} was lost"


def test_no_kick_is_lost_by_a_guest_that_never_exits(boot: Callable, in_thread: Callable) -> None:
    # Only the kick ever wakes this one, so a lost kick is a hang.
    cpu = boot(SPIN).cpu
    wanted = 0
    seen = threading.Semaphore(0)

    def loop() -> None:
        served = 0
        while served < 300:
            assert cpu.run() == abi.Exit.INTR
            if wanted != served:
                served = wanted
                seen.release()

    in_thread(loop)
    for number in range(1, 301):
        wanted = number
        cpu.kick()
        assert seen.acquire(timeout=5), f"kick {number} was lost"


def test_kick_reaches_the_next_thread_that_runs(boot: Callable, in_thread: Callable) -> None:
    cpu = boot(SPIN).cpu
    for _ in range(20):  # thread numbers are reused
        reasons: list[int] = []
        thread = in_thread(lambda into=reasons: into.append(cpu.run()))
        time.sleep(0.01)  # it is in the guest by now
        cpu.kick()
        thread.join(5)
        assert reasons == [abi.Exit.INTR]


def test_kick_after_close_is_harmless(boot: Callable) -> None:
    cpu = boot(TWO_OUTS).cpu
    cpu.run()
    cpu.close()

    cpu.kick()


def fail_run_with(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object) -> int:
        ctypes.set_errno(code)
        return -1

    monkeypatch.setattr(vcpu_module, "raw", refuse)


def test_efault_without_details_never_shows_a_stale_reason(
    boot: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = boot(TWO_OUTS).cpu
    assert cpu.run() == abi.Exit.IO

    fail_run_with(monkeypatch, errno.EFAULT)

    assert cpu.run() == abi.EXIT_EFAULT


def test_efault_with_details_is_a_memory_fault(
    boot: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = boot(TWO_OUTS).cpu

    def fault(*_: object) -> int:
        cpu.run_page.exit_reason = abi.Exit.MEMORY_FAULT
        ctypes.set_errno(errno.EFAULT)
        return -1

    monkeypatch.setattr(vcpu_module, "raw", fault)

    assert cpu.run() == abi.Exit.MEMORY_FAULT


def test_eagain_is_an_interruption(boot: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = boot(TWO_OUTS).cpu

    fail_run_with(monkeypatch, errno.EAGAIN)

    assert cpu.run() == abi.Exit.INTR


def test_any_other_failure_names_the_cpu(boot: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = boot(TWO_OUTS).cpu

    fail_run_with(monkeypatch, errno.ENOEXEC)

    with pytest.raises(HostError, match="cannot run cpu0: KVM_RUN failed: Exec format"):
        cpu.run()
