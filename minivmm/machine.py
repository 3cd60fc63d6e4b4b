"""A machine: a board, a hypervisor and vCPUs wired together, and its life from start to end.

    prelaunch -> running <-> paused -> shutdown | guest-panicked | internal-error

State names are QEMU's RunState. Methods run with the loop's lock held unless they say otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Self

from minivmm.background import Background
from minivmm.board import Board, plan_board
from minivmm.boot.cpuid import guest_cpuid, host_phys_bits
from minivmm.bus import Action
from minivmm.console_watch import ConsoleWatch
from minivmm.debug_reins import Reins
from minivmm.debugger import Debugger
from minivmm.device_events import report_changes
from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.devices.virtio_mem.view import View, observe
from minivmm.dma_start import follow_memory
from minivmm.doorbells import KvmDoorbells
from minivmm.exit_tap import tell_exits
from minivmm.guest_image import GuestImage
from minivmm.interrupts import KvmInterrupts
from minivmm.kvm.abi import Cap
from minivmm.kvm.hypervisor import Hypervisor
from minivmm.loop import EventLoop
from minivmm.machine_spec import MachineSpec
from minivmm.memslots import memslots_for
from minivmm.outcome import Outcome as Outcome
from minivmm.passthrough import Surroundings, open_devices
from minivmm.protection import Measures, Protection
from minivmm.stats import Stats
from minivmm.trace import Trace
from minivmm.vcpu import ExitServer, VcpuGroup, blame

EventListener = Callable[[str, dict[str, object]], None]
"""Called with a QMP event's name and data, lock held, from any thread."""


class Machine:
    """One virtual machine. Build it, start it, and be told by `on_end` when it is over.

    Construction raises UsageError, ImageError or HostError, and leaves nothing behind then.
    """

    def __init__(
        self,
        spec: MachineSpec,
        image: GuestImage,
        system: Hypervisor,
        loop: EventLoop,
        *,
        console: Callable[[bytes], None],
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
        self._watch = ConsoleWatch(self._on_panic, lambda: self.stats.mark("init"))
        self._started = False
        self._resetting = False
        self._closed = False
        with ExitStack() as owned:
            self._build(system, owned)
            self._owned = owned.pop_all()

    def _build(self, system: Hypervisor, owned: ExitStack) -> None:
        """Make the VM, the board and the vCPUs; what must be released again goes to `owned`."""
        cpuid = system.supported_cpuid()
        address_map = plan_board(self.spec, host_phys_bits(cpuid))
        self._vm = system.create_vm()
        owned.callback(self._vm.close)
        interrupts = KvmInterrupts(self._vm)
        owned.callback(interrupts.close)
        doorbells = KvmDoorbells(self._vm, self.loop)
        owned.callback(doorbells.close)
        limit = system.check(Cap.NR_MEMSLOTS)
        self._memslots = memslots_for(self._vm, limit, self.spec.memory_devices)
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
        self.balloon = self.board.balloon
        self.board.terminal.on_output = self._console
        self.board.memory.subscribe(self._memslots)
        container = passthrough.container if passthrough else None
        self._dma = follow_memory(self.board, container, self._warn_soon)
        background = Background(self.loop, self._soon)
        owned.callback(background.close)
        self.later = background.later
        for function in self.board.functions:
            function.device.use(background)
        report_changes(self.board, self._emit)
        state = self.board.load(self._image)
        self._vcpus = [self._vm.create_vcpu(index) for index in range(self.spec.cpus)]
        deadline_timer = bool(system.check(Cap.TSC_DEADLINE_TIMER))
        for vcpu in self._vcpus:
            entries = guest_cpuid(
                cpuid,
                index=vcpu.index,
                count=self.board.numa.socket_cpus,
                phys_bits=address_map.phys_bits,
                tsc_deadline=deadline_timer,
            )
            vcpu.initialise(entries, state if vcpu.index == 0 else None)
        server = ExitServer(self.board.mmio, self.board.pio, self.stats)
        self._protection = Protection(
            self.board.memory_devices.values(), self._memslots, self._measures(), server.accessor
        )
        self._reins = Reins(self, self._emit, self._halt, self._run_on)
        self.debugger = Debugger(self._vcpus, self.board.memory, self.board.pio, self._reins)
        self._group = VcpuGroup(
            self._vcpus,
            server,
            self.loop.lock,
            self.stats,
            on_action=self._on_action,
            on_fault=self._protection.on_fault,
            on_debug=self.debugger.on_exit,
            on_failure=self._on_failure,
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

    @property
    def boot_memory(self) -> int:
        """Bytes of RAM that the guest boots with."""
        return self.board.boot_memory

    def view(self, identifier: str) -> View:
        """Memory device `identifier` as it is now, for a diagnosis."""
        running = self.state == "running"
        around = self.board.surroundings(identifier, running=running)
        return observe(self.memory_devices[identifier], around)

    def start(self, *, frozen: bool = False) -> Self:
        """Run the guest, unless the machine was started before or was told to quit meanwhile.

        A `frozen` one stays before its first instruction until `resume`.
        """
        if self.state == "prelaunch" and not self._started:
            self._started = True
            self.state = self.state if frozen else "running"
            self._group.start(held=frozen or self._resetting)
        return self

    def pause(self) -> None:
        """Stop all vCPUs (QMP stop); they park as soon as they finished what they are at."""
        if self.state == "running":
            self.state = "paused"
            self._group.park(lambda: None)
            self.trace.emit("machine", "pause")
            self._emit("STOP")

    def resume(self) -> None:
        """Run on after `pause` or a frozen start (QMP cont). Raises Refused under a debugger."""
        self._reins.refuse()
        if self.state == "paused" or (self.state == "prelaunch" and self._started):
            self.state = "running"
            self.trace.emit("machine", "resume")
            self._emit("RESUME")
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
        if self.outcome is None and not self._resetting:
            self._resetting = True
            self._halt(lambda: self._system_reset(guest))

    def request_quit(self) -> None:
        """End the machine at once (QMP quit)."""
        self._end("shutdown", "host asked to quit")

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
        self._group.park(lambda: self._soon(then))

    def _run_on(self) -> None:
        """Let the vCPUs run, unless something else still wants them parked."""
        if self._resetting or self._protection.narrowing:
            return
        if self.state == "running":
            self._group.resume()
        elif self.state == "debug" and self._reins.exempt:
            self._group.resume(self._reins.exempt)

    def _measures(self) -> Measures:
        return Measures(
            warn=self._warn,
            emit=self._emit,
            pause=self.pause,
            kill=lambda why: self._end("guest-panicked", why),
            halt=self._halt,
            go_on=self._run_on,
            fail=lambda why: self._end("internal-error", why),
        )

    def _warn(self, line: str) -> None:
        for listener in self.on_warning:
            listener(line)

    def _warn_soon(self, line: str) -> None:
        self._soon(lambda: self._warn(line))

    def _on_console(self, data: bytes) -> None:
        self._watch.feed(data)
        self._console(data)

    def _on_action(self, action: Action) -> None:
        self.trace.emit("machine", "action", action=action.value)
        if action is Action.POWER_OFF:
            self._end("shutdown", "guest powered off")
        elif self._watch.panic is not None:
            self._end_panicked(self._watch.panic)
        else:
            self.request_reset(guest=True)

    def _on_failure(self, why: str) -> None:
        """The guest cannot go on; if it panicked before, that says more than how it then fell."""
        if self._watch.panic is not None:
            self._end_panicked(self._watch.panic)
        else:
            self._end("internal-error", why)

    def _end_panicked(self, panic: str) -> None:
        self._end("guest-panicked", f"guest panicked: {panic}")

    def _on_panic(self) -> None:
        """A panic began on the console; its report goes on until the guest resets (panic=-1)."""
        self.trace.emit("machine", "panic", reason=self._watch.panic)
        self._emit("GUEST_PANICKED", {"action": "poweroff"})

    def _system_reset(self, guest: bool) -> None:
        """All vCPUs are parked: everything as at power-on, then run (requested sizes stay)."""
        if self.outcome is not None:
            return
        try:
            self._power_on_again()
        except Exception as error:  # whatever it is: nobody else would ever wake the vCPUs
            self._end("internal-error", f"the machine cannot be reset: {blame(error)}")
            return
        self._resetting = False
        reason = "guest-reset" if guest else "host-qmp-system-reset"
        self._emit("RESET", {"guest": guest, "reason": reason})
        self.trace.emit("machine", "reset", guest=guest)
        self._run_on()

    def _power_on_again(self) -> None:
        self._watch.reset()
        self.board.system_reset()
        self._vm.reset_irqchips()
        state = self.board.load(self._image)
        for vcpu in self._vcpus:
            vcpu.reset(state if vcpu.index == 0 else None)

    def _end(self, state: str, reason: str) -> None:
        if self.outcome is not None:
            return
        self.outcome = Outcome(state, reason)
        self.state = state
        self.trace.emit("machine", "end", outcome=state, reason=reason)
        self._group.park(lambda: None)
        cause = self.outcome.cause
        self._emit("SHUTDOWN", {"guest": cause.startswith("guest"), "reason": cause})
        for listener in self.on_end:
            listener(self.outcome)

    def _emit(self, event: str, data: dict[str, object] | None = None) -> None:
        for listener in tuple(self.on_event):
            listener(event, data or {})
