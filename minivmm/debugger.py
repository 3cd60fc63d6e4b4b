"""Run control for one debugger: who runs, who steps, and why everything stopped.

    attach -> stopped -> go -> (a vCPU hits something, or interrupt) -> all park -> stopped -> ...

Everything stops together ("all-stop", as GDB calls it). While attached, the machine runs only when
the debugger lets it. What a debugger speaks is control/gdb_*.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from minivmm.bus import Action, Bus
from minivmm.debug_reins import Reins
from minivmm.errors import GuestAddressError, HostError
from minivmm.guest_code import INT3, OUT_TRAP, TRAP_PORT, GuestCode
from minivmm.kvm.abi import Exit
from minivmm.kvm.debug import SLOTS, DebugEvent, DebugFeatures, Watch
from minivmm.kvm.debug_abi import (
    DR6_SINGLE_STEP,
    VECTOR_BP,
    GuestDebug,
)
from minivmm.kvm.hypervisor import HypervisorVcpu
from minivmm.memory.guest import GuestMemory

_PUSHF = 0x9C
_TRAP_FLAG = 1 << 8
"""RFLAGS.TF."""


@dataclass(frozen=True)
class Stop:
    """Why all vCPUs are parked: what vCPU `cpu` did.

    `cause`: "attach", "interrupt", "step", "trap" (a breakpoint in memory), "execute", "write" or
    "access" (a Watch of that kind, at `address`).
    """

    cpu: int
    cause: str
    address: int = 0


class Debugger:
    """Breakpoints, watches and steps of one machine. All methods want the lock held.

    `on_stop` is called on the loop, with all vCPUs parked: only then may registers and memory be
    looked at, and breakpoints change.
    """

    def __init__(
        self, vcpus: Sequence[HypervisorVcpu], memory: GuestMemory, pio: Bus, reins: Reins
    ) -> None:
        self.code = GuestCode(memory, vcpus)
        self.vcpus = vcpus
        self.features = DebugFeatures()
        self.on_stop: Callable[[Stop], None] = lambda stop: None
        self.attached = False
        self.stopped = False
        """Attached, and all vCPUs are parked."""
        self._resumed = False  # the machine has run since attach
        self._leaving = False
        self._pio = pio
        self._reins = reins
        self._watches: list[Watch | None] = [None] * SLOTS
        self._armed: dict[int, tuple[GuestDebug, tuple[Watch | None, ...]]] = {}
        self._stepping: frozenset[int] = frozenset()
        self._allowed: frozenset[int] | None = None
        self._pushes: dict[int, int] = {}
        self._found: list[Stop] = []
        self._ported: set[int] = set()
        self._halting = False

    def attach(self, features: DebugFeatures) -> None:
        """Stop the machine, on a host with these `features`; `on_stop` follows."""
        self.features = features
        self.code.trap = INT3 if features.software else OUT_TRAP
        if not features.software:
            self._pio.add(TRAP_PORT, 1, _TrapPort(self.on_port), name="breakpoints")
        self.attached = True
        self._resumed = self._leaving = False
        self._found = [Stop(0, "attach")]
        self._halt()

    def detach(self, *, run: bool) -> None:
        """Leave no trace in the guest; then `run`, or have it as it was if it has not run since.

        It takes a moment if the machine runs.
        """
        if not self.stopped:
            self._leaving = True
            self._halt()
            return
        self.code.clear_all()
        self._watches = [None] * SLOTS
        for vcpu in self.vcpus:
            self._arm(vcpu, step=False)
            vcpu.debug.tell_of_pause()
        self.forget()
        self._reins.leave(run or self._resumed)

    def forget(self) -> None:
        """The machine is over: there is nothing left to debug."""
        if self.attached and not self.features.software:
            self._pio.remove(TRAP_PORT)
        self._found.clear()
        self.attached = self.stopped = False

    def interrupt(self) -> None:
        """Stop, for no other reason than that the user wants it."""
        self._found.append(Stop(0, "interrupt"))
        self._halt()

    def go(self, *, steps: Iterable[int] = (), only: frozenset[int] | None = None) -> None:
        """Let all vCPUs run, or `only` these; those in `steps` for one instruction.

        A watch that was hit at the same time as what stopped it last comes first. Raises HostError.
        """
        if self._found:
            self.stopped = False
            self._halt()
            return
        self._stepping = frozenset(steps)
        self._allowed = only
        self._pushes = {index: place for index in self._stepping if (place := self._push(index))}
        for vcpu in self.vcpus:
            self._arm(vcpu, step=vcpu.index in self._stepping)
            if only is None:
                vcpu.debug.tell_of_pause()
        self.stopped = False
        self._resumed = True
        self._reins.run(self._allowed)

    def add_watch(self, watch: Watch) -> None:
        """Have the processor watch an address. Raises HostError if all its four are taken."""
        if watch not in self._watches:
            if None not in self._watches:
                raise HostError(f"a processor watches {SLOTS} addresses at most: remove one")
            self._watches[self._watches.index(None)] = watch

    def remove_watch(self, watch: Watch) -> None:
        """Undo add_watch; harmless if there is no such watch."""
        if watch in self._watches:
            self._watches[self._watches.index(watch)] = None

    # -- from the vCPUs' threads -------------------------------------------------------------------

    def on_exit(self, vcpu: HypervisorVcpu) -> None:
        """Exit.DEBUG: something of ours, or something for a debugger inside the guest."""
        event = vcpu.debug.event()
        stop = self._judge(vcpu.index, event)
        if stop is not None:
            self._found.append(stop)
            self._halt()
            return
        flags, watches = self._armed.get(vcpu.index, (GuestDebug(0), ()))
        its = GuestDebug.INJECT_BP if event.exception == VECTOR_BP else GuestDebug.INJECT_DB
        vcpu.debug.control(flags | GuestDebug.ENABLE | its, watches)

    def on_port(self) -> None:
        """A vCPU wrote to the trap's port: it came to a trap, or did so of its own accord.

        Its registers tell, once the instruction is finished. One that waits for the lock meanwhile
        with the same to say is only noticed earlier.
        """
        for vcpu in self.vcpus:
            if vcpu.run_page.exit_reason == Exit.IO and vcpu.io.port == TRAP_PORT:
                self._ported.add(vcpu.index)
        self._halt()

    def _judge(self, cpu: int, event: DebugEvent) -> Stop | None:
        if event.exception == VECTOR_BP:
            return Stop(cpu, "trap", event.pc) if self.code.has_trap(event.pc) else None
        for slot, watch in enumerate(self._watches):
            if watch is not None and event.dr6 >> slot & 1:
                return Stop(cpu, watch.kind, watch.address)
        if event.dr6 & DR6_SINGLE_STEP and cpu in self._stepping:
            return Stop(cpu, "step", event.pc)
        return None

    # -- stopping ----------------------------------------------------------------------------------

    def _halt(self) -> None:
        if not self._halting:
            self._halting = True
            self._reins.stop(self._parked)

    def _parked(self) -> None:
        """All vCPUs are parked: tell why, or go on if there is nothing to tell."""
        self._halting = False
        if not self.attached:
            return
        self._step_back()
        self._clean_pushes()
        self._stepping = frozenset()
        if self._leaving:
            self.stopped = True
            self.detach(run=False)
            return
        if not self._found:  # the guest wrote to the trap's port, for reasons of its own
            self._reins.run(self._allowed)
            return
        stop = max(self._found, key=lambda one: one.cause not in ("attach", "interrupt", "step"))
        # What stops before an instruction will do so again; what stops behind one does it once.
        self._found = [
            one for one in self._found if one is not stop and one.cause in ("write", "access")
        ]
        self.stopped = True
        self.on_stop(stop)

    def _step_back(self) -> None:
        """vCPUs that executed a trap, which here is an instruction like others, are put back."""
        for index in self._ported:
            debug = self.vcpus[index].debug
            address = debug.registers()["rip"] - len(OUT_TRAP)
            if self.code.has_trap(address):
                debug.set_registers({"rip": address})
                self._found.append(Stop(index, "trap", address))
        self._ported.clear()

    # -- stepping ----------------------------------------------------------------------------------

    def _arm(self, vcpu: HypervisorVcpu, *, step: bool) -> None:
        """Have KVM stop `vcpu` where we want it; a step is to be asked for each time."""
        flags = GuestDebug(0)
        if self.code.trapped and self.features.software:
            flags |= GuestDebug.USE_SW_BP
        if any(self._watches):
            flags |= GuestDebug.USE_HW_BP
        if step:
            flags |= GuestDebug.SINGLESTEP
            if self.features.block_interrupts:
                flags |= GuestDebug.BLOCKIRQ
        if flags:
            flags |= GuestDebug.ENABLE
        wanted = (flags, tuple(self._watches))
        if step or self._armed.get(vcpu.index) != wanted:
            vcpu.debug.control(*wanted)
            self._armed[vcpu.index] = wanted

    def _push(self, cpu: int) -> int | None:
        """Where `cpu` stores its flags, if they are what it stores next."""
        registers = self.vcpus[cpu].debug.registers()
        try:
            code = self.code.read(cpu, registers["rip"], 1)
        except GuestAddressError:
            return None
        return registers["rsp"] - 8 if code[0] == _PUSHF else None

    def _clean_pushes(self) -> None:
        """The processor steps by its trap flag: the guest must not find it in what it stored."""
        for cpu, place in self._pushes.items():
            with contextlib.suppress(GuestAddressError):
                if self.vcpus[cpu].debug.registers()["rsp"] == place:
                    flags = int.from_bytes(self.code.read(cpu, place, 8), "little")
                    self.code.write(cpu, place, (flags & ~_TRAP_FLAG).to_bytes(8, "little"))
        self._pushes.clear()


class _TrapPort:
    """The port that OUT_TRAP writes to."""

    def __init__(self, on_write: Callable[[], None]) -> None:
        self._on_write = on_write

    def read(self, offset: int, size: int) -> int:
        """As if nothing were here."""
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> Action | None:
        """The value says nothing."""
        self._on_write()
        return None
