"""One virtual CPU: run it, kick it, reset it. What an exit means is the machine's business.

How a kick reaches run(), wherever its thread is at that moment:

* KVM looks at run_page.immediate_exit on the way into the guest, and at pending signals after that.
  kick() sets the flag first and signals second, so a thread before the look sees the flag and one
  after it gets the signal: there is no gap.
* In Python code, before run() or after an exit, the signal does nothing and the flag stays: the
  next run() finishes the pending I/O instruction and returns Exit.INTR at once.
* The flag is cleared in one place: when run() is about to return Exit.INTR. Whoever kicked before
  that is served by this very return, because the caller then looks for what is wanted of it. A
  real exit that overtakes the kick leaves the flag set, hence costs one Exit.INTR and no more.
* Setting and clearing take the same lock, which also orders them against what the kicker wrote
  before: this does not lean on the GIL.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import threading
from collections.abc import Sequence
from ctypes import byref
from mmap import mmap
from types import FrameType

from minivmm.errors import HostError
from minivmm.kvm import abi
from minivmm.kvm.debug import VcpuDebug
from minivmm.kvm.exits import ExitArea
from minivmm.kvm.ioctl import Ioctl, call, raw
from minivmm.kvm.pieces import VcpuTraits
from minivmm.kvm.saved import load_vcpu, save_vcpu, tsc_khz
from minivmm.kvm.state import (
    INITIAL_MSRS,
    PowerOnState,
    set_cpuid,
    set_lints,
    set_machine_check_banks,
    write_msrs,
)
from minivmm.spec.x86 import CpuidEntry, CpuState

KICK_SIGNAL = signal.SIGUSR1

_RUN = int(Ioctl.RUN)
_COMPLETION_LIMIT = 64
"""KVM_RUNs to finish one instruction; an access to memory has at most 4 parts."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.tgkill.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int]


def _on_kick(_number: int, _frame: FrameType | None) -> None:
    """That the signal came is all."""


def install_kick_handler() -> None:
    """Let KICK_SIGNAL interrupt KVM_RUN and do nothing else; call it in the main thread first.

    Without it a kick would end the process. Python runs the handler in the main thread, later and
    to no effect; its C part is what interrupts the system call, as signal.signal() sets no
    SA_RESTART. Raises ValueError in any other thread, unless it was done before.
    """
    if signal.getsignal(KICK_SIGNAL) is not _on_kick:
        signal.signal(KICK_SIGNAL, _on_kick)


def ignore_kicks_in_this_thread() -> None:
    """Last thing in a thread that ran a vCPU: kicks may still be on their way to it.

    Python gives up its signal handlers when it ends, which may be before the kernel has ended a
    thread that was joined; a late kick would then end the process with KICK_SIGNAL.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {KICK_SIGNAL})


class Vcpu(ExitArea):
    """A vCPU and its descriptor; made by Vm.create_vcpu().

    KVM lets one thread at a time into a vCPU: while run() is in the guest, every method but kick()
    waits for it to come back.
    """

    def __init__(self, fd: int, index: int, traits: VcpuTraits) -> None:
        self.index = index
        """Number of the CPU, which is also its APIC id."""
        self._fd = fd
        self._traits = traits
        self._power_on: PowerOnState | None = None
        self._lock = threading.Lock()  # guards immediate_exit and _tid
        self._tid = 0  # kernel's id of the thread that ran last
        self.tsc_khz = tsc_khz(fd)
        """Rate of its time stamp counter in kHz; 0 if the host's own is not to be relied on."""
        super().__init__(mmap(fd, traits.run_size))
        self.debug = VcpuDebug(fd, self.run_page)
        """Its debugging side."""

    def initialise(self, cpuid: Sequence[CpuidEntry], state: CpuState | None) -> None:
        """Make the power-on state (CPUID, MSRs, LAPIC), remember it, then load `state`.

        The boot CPU gets a `state`. The others get None and keep the multiprocessing state that
        KVM gave them: uninitialised, until the guest sends INIT and SIPI (reference F.8). Call it
        once, before run(). Raises HostError.
        """
        set_cpuid(self._fd, cpuid)
        set_machine_check_banks(self._fd)
        write_msrs(self._fd, INITIAL_MSRS.items())
        set_lints(self._fd)
        self._power_on = PowerOnState(self._fd, self._traits)
        if state is not None:
            self._power_on.load(state)

    def reset(self, state: CpuState | None) -> None:
        """Back to the power-on state, then load `state`. All vCPUs must be out of run().

        A pending access is finished first, as KVM would otherwise finish it on top of the new
        registers. Raises HostError.
        """
        first = self._first_state
        self.finish_access()
        first.restore()
        if state is not None:
            first.load(state)

    @property
    def _first_state(self) -> PowerOnState:
        if self._power_on is None:
            raise RuntimeError("initialise() comes first")
        return self._power_on

    @property
    def msr_indices(self) -> tuple[int, ...]:
        """The MSRs that are saved of it: those that a guest can change."""
        return self._first_state.msr_indices

    @property
    def scales_tsc(self) -> bool:
        """Whether that can be another than the host's."""
        return self._traits.scales_tsc

    def save_state(self) -> bytes:
        """All that a guest can change in it; it is out of run(), which gave Exit.INTR last.

        Raises HostError.
        """
        return save_vcpu(self._fd, self._traits, self.msr_indices)

    def load_state(self, data: bytes) -> None:
        """Take such a state over, before the first run(). Raises BadState."""
        load_vcpu(self._fd, self._traits, self.msr_indices, f"cpu{self.index}", data)
        self.tsc_khz = tsc_khz(self._fd)

    def run(self) -> int:
        """Run the guest until it needs us; returns why.

        That is an abi.Exit value, read from run_page. Exit.INTR stands for every interruption:
        look for what is wanted, then run again. EFAULT gives Exit.MEMORY_FAULT if KVM filled it in,
        else abi.EXIT_EFAULT. Raises HostError for any other failure of KVM_RUN.
        """
        # The kernel's id, a system call: Python's is given to new threads while we still hold it.
        tid = threading.get_native_id()
        if tid != self._tid:
            with self._lock:
                self._tid = tid
        page = self.run_page
        page.exit_reason = abi.EXIT_EFAULT
        if raw(self._fd, _RUN, None) < 0:
            return self._failed_run(ctypes.get_errno())
        reason: int = page.exit_reason
        return reason

    def finish_access(self) -> None:
        """Have KVM finish the instruction of the last exit, without running the guest any further.

        KVM does it on the next entry only, with the answer that then stands in the shared area; the
        registers can be trusted, and set, only after that (reference F.14). An access may have
        several parts, each an exit of its own; the later ones get whatever is in the area. Kicks
        wait meanwhile, and one that came before is kept.
        """
        with self._lock:
            kicked = self.run_page.immediate_exit
            self.run_page.immediate_exit = 1
            for _ in range(_COMPLETION_LIMIT):
                if raw(self._fd, _RUN, None) < 0:
                    break
            self.run_page.immediate_exit = kicked

    def kick(self) -> None:
        """Have run() return soon, or at once if it is called later; from any thread, never lost."""
        with self._lock:
            self.run_page.immediate_exit = 1
            # tgkill, not pthread_kill: the thread may be gone, which here is only an error return.
            if self._tid:
                _libc.tgkill(os.getpid(), self._tid, KICK_SIGNAL)

    def instruction_pointer(self) -> int:
        """RIP at the last exit, in its thread. Raises HostError.

        That of the instruction that read from a device, but behind one that wrote: KVM has finished
        a write before it exits, a read it finishes afterwards.
        """
        regs = abi.KvmRegs()
        call(self._fd, Ioctl.GET_REGS, byref(regs), to="read registers")
        rip: int = regs.rip
        return rip

    def describe(self) -> str:
        """Where the CPU is and in which mode: one line of registers. Raises HostError."""
        regs, sregs = abi.KvmRegs(), abi.KvmSregs()
        call(self._fd, Ioctl.GET_REGS, byref(regs), to="read registers")
        call(self._fd, Ioctl.GET_SREGS, byref(sregs), to="read registers")
        return (
            f"cpu{self.index} rip={regs.rip:#x} rsp={regs.rsp:#x} rflags={regs.rflags:#x}"
            f" cs={sregs.cs.selector:#x} cr0={sregs.cr0:#x} cr2={sregs.cr2:#x} cr3={sregs.cr3:#x}"
            f" cr4={sregs.cr4:#x} efer={sregs.efer:#x}"
        )

    def close(self) -> None:
        """Close the descriptor. The shared area stays readable as long as this object lives."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _failed_run(self, code: int) -> int:
        if code in (errno.EINTR, errno.EAGAIN):
            with self._lock:
                self.run_page.immediate_exit = 0
            return abi.Exit.INTR
        if code == errno.EFAULT:
            if self.run_page.exit_reason == abi.Exit.MEMORY_FAULT:
                return abi.Exit.MEMORY_FAULT
            return abi.EXIT_EFAULT
        why = os.strerror(code)
        raise HostError(f"cannot run cpu{self.index}: KVM_RUN failed: {why}") from OSError(
            code, why
        )
