"""A machine: a board, a hypervisor and vCPUs wired together, and its life from start to end.

    prelaunch -> running <-> paused -> shutdown | guest-panicked | internal-error
         (load) -> as it was saved

State names are QEMU's RunState. Methods run with the loop's lock held unless they say otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Self

from minivmm.background import Background
from minivmm.board import Board, plan_board
from minivmm.boot.cpuid import host_phys_bits
from minivmm.cpus import create_vcpus, leaves_of
from minivmm.debug_reins import Reins
from minivmm.debugger import Debugger
from minivmm.device_events import report_changes
from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.devices.virtio_mem.view import View, observe
from minivmm.dma_start import follow_memory
from minivmm.doorbells import KvmDoorbells
from minivmm.exit_tap import tell_exits
from minivmm.fate import Fate
from minivmm.guest_image import GuestImage
from minivmm.interrupts import KvmInterrupts
from minivmm.kvm.hypervisor import Hypervisor
from minivmm.loop import EventLoop
from minivmm.machine_spec import MachineSpec
from minivmm.machine_state import RunState, parts_of
from minivmm.memslots import memslots_for
from minivmm.outcome import Outcome as Outcome
from minivmm.passthrough import Surroundings, open_devices
from minivmm.protection import Measures, Protection
from minivmm.restart import Restart
from minivmm.saved import Saved
from minivmm.spec.x86 import CpuState
from minivmm.stats import Stats
from minivmm.stillness import Stillness
from minivmm.trace import Trace
from minivmm.vcpu import ExitServer, VcpuGroup
from minivmm.write_log import WriteLog

EventListener = Callable[[str, dict[str, object]], None]
"""Called with a QMP event's name and data, lock held, from any thread."""


class Machine:
    """One virtual machine. Build it, start it, and be told by `on_end` when it is over.

    With `empty` guest memory stays so, for a saved state to be loaded; `image` is wanted at the
    guest's next reset only then, and may be a function that makes it. Construction raises
    UsageError, ImageError or HostError, and leaves nothing behind then.
    """

    def __init__(
        self,
        spec: MachineSpec,
        image: GuestImage | Callable[[], GuestImage],
        system: Hypervisor,
        loop: EventLoop,
        *,
        console: Callable[[bytes], None],
        empty: bool = False,
    ) -> None:
        self.spec = spec
        self.name = spec.name or "vm"
        self.state = "prelaunch"
        self.loop = loop
        self.trace = Trace()
        self.stats = Stats()
        self.outcome: Outcome | None = None
        self.on_event: list[EventListener] = []
        self.on_warning: list[Callable[[str], None]] = []
        """Called with lines for the user, lock held, from any thread."""
        self.on_end: list[Callable[[Outcome], None]] = []
        self._image = image
        self._console = console
        self._fate = Fate(self, self._emit, self._park)
        self._started = False
        self._restart = Restart(self._halt, self._power_on_again, self._on_reset, self._fate.fail)
        self._run_state = RunState(self, self._fate.watch, self._restart)
        self._closed = False
        with ExitStack() as owned:
            self._build(system, owned, empty)
            self._owned = owned.pop_all()

    def _build(self, system: Hypervisor, owned: ExitStack, empty: bool) -> None:
        """Make the VM, the board and the vCPUs; what must be released again goes to `owned`."""
        cpuid = system.supported_cpuid()
        address_map = plan_board(self.spec, host_phys_bits(cpuid))
        self._vm = system.create_vm()
        owned.callback(self._vm.close)
        interrupts = KvmInterrupts(self._vm)
        owned.callback(interrupts.close)
        doorbells = KvmDoorbells(self._vm, self.loop)
        owned.callback(doorbells.close)
        self._memslots = memslots_for(self._vm, system, self.spec.memory_devices)
        around = Surroundings(self._vm, interrupts, self._memslots, self.loop, self._warn_soon)
        passthrough = open_devices(self.spec.passed_on, around, owned)
        self.board = Board(
            self.spec,
            address_map,
            interrupts=interrupts,
            doorbells=doorbells,
            defer=self._soon,
            trace=self.trace,
            console=self._on_console,
            passthrough=passthrough,
        )
        owned.callback(self.board.close)
        self.functions, self.numa = self.board.pci.functions, self.board.numa
        self.balloon, self.boot_memory = self.board.balloon, self.board.boot_memory
        self.board.terminal.on_output = self._console
        self.board.memory.subscribe(self._memslots)
        container = passthrough.container if passthrough else None
        self._dma = follow_memory(self.board, container, self._warn_soon)
        self.write_log = WriteLog(self._vm, self._memslots, self.board.memory)
        background = Background(self.loop, self._soon)
        owned.callback(background.close)
        self.later = self._memslots.later = background.later
        self.jobs = Background(self.loop, self._soon)
        """Long work of others on this machine, which ends soon once `closed` says so."""
        owned.callback(self.jobs.close)
        for function in self.board.functions:
            function.device.use(background)
        report_changes(self.board, self._emit)
        self._stillness = Stillness(self, background, self._park, self._run_on)
        self.cpuid = leaves_of(system, cpuid, self.board, self.spec.cpus)
        self.vcpus = create_vcpus(self._vm, self.cpuid, None if empty else self._load())
        server = ExitServer(self.board.mmio, self.board.pio, self.stats)
        measures = Measures(
            warn=self._warn,
            emit=self._emit,
            pause=self.pause,
            kill=lambda why: self._fate.end("guest-panicked", why),
            halt=self._halt,
            go_on=self._run_on,
            fail=self._fate.fail,
        )
        self._protection = Protection(
            self.board.memory_devices.values(), self._memslots, measures, server.accessor
        )
        self._reins = Reins(self, self._emit, self._halt, self._run_on)
        self.debugger = Debugger(self.vcpus, self.board.memory, self.board.pio, self._reins)
        self._group = VcpuGroup(
            self.vcpus,
            server,
            self.loop.lock,
            self.stats,
            on_action=self._fate.on_action,
            on_fault=self._protection.on_fault,
            on_debug=self.debugger.on_exit,
            on_failure=self._fate.on_failure,
        )
        tell_exits(self._group, self.trace)

    @property
    def memory_devices(self) -> dict[str, VirtioMem]:
        """virtio-mem devices by id."""
        return self.board.memory_devices

    @property
    def memslots(self) -> int:
        """How many memslots KVM has for guest memory now."""
        return self._memslots.count

    @property
    def thread_ids(self) -> Sequence[int]:
        """The host's id of each vCPU's thread, by vCPU; 0 before the machine starts."""
        return self._group.thread_ids

    def view(self, identifier: str) -> View:
        """Memory device `identifier` as it is now, for a diagnosis."""
        running = self.state == "running"
        around = self.board.surroundings(identifier, running=running)
        return observe(self.memory_devices[identifier], around)

    @property
    def closed(self) -> bool:
        """Has `close` begun? From any thread."""
        return self._closed

    def start(self, *, frozen: bool = False) -> Self:
        """Run the guest, unless the machine was started before or was told to quit meanwhile.

        A `frozen` one stays before its first instruction until `resume`.
        """
        if self.state == "prelaunch" and not self._started:
            self._started = True
            self.state = self._run_state.begin(frozen)
            if self._run_state.loaded:
                self._stillness.take_up()
            self._group.start(held=self.state != "running" or self._held)
        return self

    def quiesce(self, then: Callable[[], None]) -> None:
        """Stand still: no vCPU runs, no request is under way; then call `then` on the loop.

        Until `unquiesce`, for which a reset waits, too. `state` stays what it is. `then` is never
        called if the machine ends before: see on_end. Raises Refused.
        """
        self._stillness.begin(then)

    def unquiesce(self) -> None:
        """Go on exactly as before `quiesce`. Harmless when repeated."""
        self._stillness.release()

    def saved_parts(self) -> dict[str, Saved]:
        """All that has a state to be saved, by name, in the order to load it."""
        return parts_of(self._run_state, self.board, self.vcpus, self._vm)

    def pause(self) -> None:
        """Stop all vCPUs (QMP stop); they park as soon as they finished what they are at."""
        if self.state == "running":
            self.state = "paused"
            self._group.park(lambda: None)
            self.trace.emit("machine", "pause")
            self._emit("STOP")

    def resume(self) -> None:
        """Run on after `pause` or a frozen start (QMP cont). Raises Refused under a debugger.

        One that was handed over to another process ("postmigrate") still stands still; who says
        so has it run on here.
        """
        self._reins.refuse()
        left = self.state == "postmigrate"
        if left or self.state == "paused" or (self.state == "prelaunch" and self._started):
            self.state = "running"
            self.trace.emit("machine", "resume")
            self._emit("RESUME")
            if left:
                self.unquiesce()
            else:
                self._run_on()

    def request_powerdown(self) -> None:
        """Press the power button (QMP system_powerdown)."""
        self.board.power.press_button()
        self.trace.emit("machine", "powerdown")
        self._emit("POWERDOWN")

    def send_break(self) -> None:
        """A break on the serial console (QMP chardev-send-break)."""
        self.board.serial.receive_break()

    def request_reset(self, *, guest: bool = False) -> None:
        """Reset the whole machine (QMP system_reset; or the guest asked).

        The vCPUs are held until it is done, so requests that come before that are the same reset.
        """
        self._restart.request(guest=guest)

    def request_quit(self) -> None:
        """End the machine at once (QMP quit)."""
        self._fate.end("shutdown", "host asked to quit")

    def guest_clock(self) -> float | None:
        """The guest's kvmclock in seconds; None if KVM does not tell."""
        return self._vm.clock()

    def inspect(self) -> dict[str, object]:
        """The live tree: state, CPUs, board, recent events."""
        return {
            "name": self.name,
            "state": self.state,
            "vcpus": self._group.inspect(),
            "memslots": self._memslots.inspect(),
            "dma": self._dma.inspect() if self._dma else None,
            "board": self.board.inspect(),
            "events": [str(event) for event in self.trace.recent()],
        }

    def close(self) -> None:
        """End the threads and release all of KVM and memory. On the loop, without the lock.

        What was put off until later is not done any more. Harmless when repeated.
        """
        self._group.stop()
        self._closed = True
        self._owned.close()

    def _soon(self, fn: Callable[[], None]) -> None:
        """Run `fn` on the loop, lock held; never once the machine is closed: memory is gone."""
        self.loop.call_soon(lambda: None if self._closed else fn())

    def _halt(self, then: Callable[[], None]) -> None:
        """Park all vCPUs, then call `then` on the loop, lock held. `_run_on` ends it."""
        self._stillness.halt(then)

    def _park(self, then: Callable[[], None]) -> None:
        self._group.park(lambda: self._soon(then))

    @property
    def _held(self) -> bool:
        """Does something want all vCPUs parked, whatever `state` is?"""
        return self._restart.pending or self._protection.narrowing or self._stillness.wanted

    def _load(self) -> CpuState:
        """Fill guest memory for the first instruction; returns the boot CPU's state."""
        return self.board.load(self._image() if callable(self._image) else self._image)

    def _run_on(self) -> None:
        """Let the vCPUs run, unless something else still wants them parked."""
        if self._held:
            return
        if self.state == "running":
            self._group.resume()
        elif self.state == "debug" and self._reins.exempt:
            self._group.resume(self._reins.exempt)

    def _warn(self, line: str) -> None:
        for listener in self.on_warning:
            listener(line)

    def _warn_soon(self, line: str) -> None:
        self._soon(lambda: self._warn(line))

    def _on_console(self, data: bytes) -> None:
        self._fate.watch.feed(data)
        self._console(data)

    def _on_reset(self, guest: bool) -> None:
        if self.outcome is not None:
            return
        reason = "guest-reset" if guest else "host-qmp-system-reset"
        self._emit("RESET", {"guest": guest, "reason": reason})
        self.trace.emit("machine", "reset", guest=guest)
        self._run_on()

    def _power_on_again(self) -> None:
        """Everything as at power-on (requested sizes stay), unless the machine has ended."""
        if self.outcome is not None:
            return
        self._fate.watch.reset()
        self.board.system_reset()
        self._vm.reset_irqchips()
        state = self._load()
        for vcpu in self.vcpus:
            vcpu.reset(state if vcpu.index == 0 else None)

    def _emit(self, event: str, data: dict[str, object] | None = None) -> None:
        for listener in tuple(self.on_event):
            listener(event, data or {})
