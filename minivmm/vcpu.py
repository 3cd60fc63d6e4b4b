"""vCPU threads: run guest code, serve exits under the lock, park when the machine must change.

A thread parks only after KVM_RUN returned for a kick: that return has completed the instruction
whose I/O was served before, so registers may be replaced while it is parked (reference F.14).
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from minivmm.bus import Action, Bus
from minivmm.errors import HostError, MinivmmError
from minivmm.kvm.abi import EXIT_EFAULT, IO_OUT, Exit
from minivmm.kvm.hypervisor import HypervisorVcpu
from minivmm.kvm.vcpu import ignore_kicks_in_this_thread
from minivmm.stats import Stats

_log = logging.getLogger(__name__)

_FAULTS = (EXIT_EFAULT, Exit.MEMORY_FAULT)
"""KVM_RUN failed with EFAULT: a page of the guest is not to be had."""


class ExitServer:
    """Finds the device for an exit. One per machine; the caller holds the lock."""

    def __init__(self, mmio: Bus, pio: Bus, stats: Stats) -> None:
        self._mmio = mmio
        self._pio = pio
        self._stats = stats
        self._accessing: HypervisorVcpu | None = None

    def serve_io(self, vcpu: HypervisorVcpu) -> Action | None:
        """KVM_EXIT_IO: `count` accesses of `size` bytes at one port (string I/O has count > 1)."""
        io = vcpu.io
        size, port, outwards = io.size, io.port, io.direction == IO_OUT
        data = vcpu.io_data()
        action: Action | None = None
        self._stats.count_at("io out" if outwards else "io in", port)
        for at in range(0, len(data), size):
            if outwards:
                value = int.from_bytes(data[at : at + size], "little")
                action = self._pio.write(port, size, value) or action
            else:
                data[at : at + size] = self._pio.read(port, size).to_bytes(size, "little")
        return action

    def serve_mmio(self, vcpu: HypervisorVcpu) -> Action | None:
        """KVM_EXIT_MMIO: one access of 1, 2, 4 or 8 bytes."""
        self._accessing = vcpu
        mmio = vcpu.mmio
        gpa, size = mmio.phys_addr, mmio.len
        if mmio.is_write:
            self._stats.count_at("mmio write", gpa)
            return self._mmio.write(gpa, size, vcpu.mmio_value())
        self._stats.count_at("mmio read", gpa)
        vcpu.set_mmio_value(self._mmio.read(gpa, size))
        return None

    def accessor(self) -> tuple[int, int] | None:
        """Number and instruction pointer of the vCPU whose memory access is being served.

        For the device that serves it; see Vcpu.instruction_pointer for what it is after a write.
        """
        vcpu = self._accessing
        return None if vcpu is None else (vcpu.index, vcpu.instruction_pointer())


class VcpuGroup:
    """All vCPUs of a machine: one thread each, started, parked, resumed and stopped together.

    `on_action`, `on_fault` and `on_failure` are called from vCPU threads with the lock held; they
    must not wait for vCPUs, but may call `park`. `on_fault` is told of a vCPU that KVM cannot give
    the memory that it wants, and says whether to try again: otherwise it is a failure.
    """

    def __init__(
        self,
        vcpus: Sequence[HypervisorVcpu],
        server: ExitServer,
        lock: threading.RLock,
        stats: Stats,
        *,
        on_action: Callable[[Action], None],
        on_fault: Callable[[HypervisorVcpu], bool],
        on_debug: Callable[[HypervisorVcpu], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self._vcpus = vcpus
        self._server = server
        self._lock = lock
        self._stats = stats
        self._on_action = on_action
        self._on_fault = on_fault
        self._on_debug = on_debug
        self._on_failure = on_failure
        self._gate = threading.Condition()
        self._hold = False
        self._exempt: frozenset[int] = frozenset()
        self._quit = False
        self._parked = 0
        self._when_parked: list[Callable[[], None]] = []
        self._threads: list[threading.Thread] = []
        self.serve: Callable[[HypervisorVcpu, int], None] = self._serve
        """Serves an exit by its reason, with the lock held; exit_tap.py puts another in place."""

    @property
    def thread_ids(self) -> Sequence[int]:
        """The system's id of each vCPU's thread; 0 for those that do not run."""
        ids = [thread.native_id or 0 for thread in self._threads]
        return ids + [0] * (len(self._vcpus) - len(ids))

    def start(self, *, held: bool = False) -> None:
        """Create the threads; with `held` they wait for `resume` before the first instruction."""
        self._hold = held
        for vcpu in self._vcpus:
            thread = threading.Thread(target=self._main, args=(vcpu,), name=f"vcpu{vcpu.index}")
            thread.daemon = True
            self._threads.append(thread)
            thread.start()

    def park(self, then: Callable[[], None]) -> None:
        """Stop all vCPUs at a clean point, then call `then` from one of their threads, unlocked."""
        with self._gate:
            self._hold = True
            self._exempt = frozenset()
            self._when_parked.append(then)
            if self._parked == len(self._threads):
                self._announce()
        for vcpu in self._vcpus:
            vcpu.kick()

    def resume(self, only: frozenset[int] | None = None) -> None:
        """Let parked vCPUs run again: all, or only those of these numbers."""
        with self._gate:
            self._hold = only is not None
            self._exempt = only or frozenset()
            self._gate.notify_all()

    def stop(self) -> None:
        """End all threads and wait for them; the caller must not hold the lock."""
        with self._gate:
            self._quit = True
            self._gate.notify_all()
        for vcpu in self._vcpus:
            vcpu.kick()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def inspect(self) -> list[object]:
        """Thread states, by vCPU."""
        return [{"index": v.index, "parked": self._hold} for v in self._vcpus]

    def _announce(self) -> None:
        """All are parked: call whoever waits for it (gate held; callbacks only post work)."""
        waiting, self._when_parked = self._when_parked, []
        for then in waiting:
            then()

    def _may_run(self, index: int) -> bool:
        """Wait at the gate while vCPU `index` is held; False when its thread must end."""
        with self._gate:
            if not self._free(index):
                self._parked += 1
                if self._parked == len(self._threads):
                    self._announce()
                self._gate.wait_for(lambda: self._free(index))
                self._parked -= 1
            return not self._quit

    def _free(self, index: int) -> bool:
        return self._quit or not self._hold or index in self._exempt

    def _main(self, vcpu: HypervisorVcpu) -> None:
        try:
            self._run(vcpu)
        finally:
            ignore_kicks_in_this_thread()

    def _run(self, vcpu: HypervisorVcpu) -> None:
        if not self._may_run(vcpu.index):
            return
        if vcpu.index == 0:
            with self._lock:
                self._stats.mark("first-instruction")
        try:
            while True:
                reason = vcpu.run()
                if reason == Exit.INTR:
                    if not self._may_run(vcpu.index):
                        return
                    continue
                with self._lock:
                    self.serve(vcpu, reason)
        except Exception as error:  # even a bug of ours must end the machine, not hang the guest
            with self._lock:
                self._on_failure(blame(error))

    def _serve(self, vcpu: HypervisorVcpu, reason: int) -> None:
        action: Action | None = None
        if reason == Exit.IO:
            action = self._server.serve_io(vcpu)
        elif reason == Exit.MMIO:
            action = self._server.serve_mmio(vcpu)
        elif reason == Exit.DEBUG:
            self._on_debug(vcpu)
        else:
            self._stats.count(exit_name(reason))
            if reason not in _FAULTS or not self._on_fault(vcpu):
                self._on_failure(_explain(vcpu, reason))
        if action is not None:
            self._on_action(action)


def blame(error: Exception) -> str:
    """One line on `error`, which ends the machine; the traceback of a bug goes to the log."""
    if isinstance(error, MinivmmError | OSError):
        return str(error)
    _log.error("bug in minivmm", exc_info=error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(str(error).split())
    kind = type(error).__name__
    return f"bug in minivmm: {kind}: {said} ({Path(place.filename).name}:{place.lineno})"


def exit_name(reason: int) -> str:
    """KVM's name of an exit in lower case: "shutdown"."""
    if reason == EXIT_EFAULT:
        return "fault"
    try:
        return Exit(reason).name.lower()
    except ValueError:
        return f"exit {reason}"


def _explain(vcpu: HypervisorVcpu, reason: int) -> str:
    """One line on an exit after which the guest cannot go on."""
    try:
        where = vcpu.describe()
    except HostError as error:
        where = f"cpu{vcpu.index}, {error}"
    if reason == Exit.SHUTDOWN:
        return f"the guest triple-faulted: {where}"
    if reason == Exit.INTERNAL_ERROR:
        suberror = vcpu.run_page.internal.suberror
        return f"KVM cannot run this guest code (internal error {suberror}): {where}"
    if reason == Exit.FAIL_ENTRY:
        return f"KVM refused to enter the guest: {where}"
    if reason in _FAULTS:
        return (
            "the host cannot supply guest memory (out of memory, or of huge pages: prealloc=on"
            f" notices that in time): {where}"
        )
    return f"unexpected exit ({exit_name(reason)}): {where}"
