"""The vCPU of minivmm.testing.fake_kvm: it follows a script instead of guest code."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from construct import BytesInteger, Int16ul, PrefixedArray, Struct

from minivmm.kvm import abi
from minivmm.kvm.exits import ExitArea
from minivmm.saved import build, parse, require
from minivmm.spec.x86 import CpuidEntry, CpuState
from minivmm.testing import host_memory
from minivmm.testing.fake_debug import FakeDebug
from minivmm.units import is_power_of_two

PAGE = 4096

_STATE = Struct("registers" / PrefixedArray(Int16ul, BytesInteger(16, swapped=True)))


class Surroundings(Protocol):
    """What a vCPU needs of its VM."""

    def hva(self, gpa: int, size: int) -> int | None:
        """Host address of `size` bytes at `gpa`, if a slot has them."""

    def ring(self, address: int, length: int) -> bool:
        """Signal the doorbell that a guest write hits; False if it hits none."""

    def wrote(self, gpa: int, size: int) -> None:
        """A vCPU wrote to memory."""


@dataclass
class Answer:
    """What the VMM answered to a scripted read; `value` is None until the guest goes on."""

    value: int | None = None


@dataclass(frozen=True)
class _Execution:
    """Scripted: the instruction at `address`, of one byte if memory does not say otherwise."""

    address: int


@dataclass(frozen=True)
class _Access:
    """A scripted IO or MMIO exit; `data` is what a write carries, None for a read."""

    reason: int
    address: int
    size: int
    count: int
    data: bytes | None
    answer: Answer = field(default_factory=Answer)


_Step = _Access | _Execution | int


class FakeVcpu(ExitArea):
    """Follows its script; when it is over, the guest is halted: run() waits for a kick.

    Scripts may be extended at any time, from any thread.
    """

    def __init__(self, vm: Surroundings, index: int) -> None:
        super().__init__(bytearray(2 * PAGE))
        self.index = index
        self.cpuid: list[CpuidEntry] = []
        """What initialise() was given."""
        self.states: list[CpuState | None] = []
        """The state of initialise(), then that of every reset()."""
        self.runs = 0
        """How often run() was called."""
        self.debug = FakeDebug(vm, self.run_page)
        self._vm = vm
        self._script: deque[_Step] = deque()
        self._pending: _Step | None = None  # the exit that the VMM now works on
        self._changed = threading.Condition()

    def initialise(self, cpuid: Sequence[CpuidEntry], state: CpuState | None) -> None:
        """Record CPUID and first state."""
        self.cpuid = list(cpuid)
        self.states.append(state)

    def reset(self, state: CpuState | None) -> None:
        """Finish the pending access and record the state; the script goes on."""
        self.finish_access()
        self.states.append(state)

    msr_indices = (0x10, 0x174)
    tsc_khz = 1_000_000
    scales_tsc = False

    def save_state(self) -> bytes:
        """Its registers."""
        return build(_STATE, registers=list(self.debug.values.values()))

    def load_state(self, data: bytes) -> None:
        """Take such a state over."""
        name = f"cpu{self.index}"
        values = parse(name, _STATE, data).registers
        count = len(self.debug.values)
        require(len(values) == count, name, "registers", len(values), f"there are {count}")
        self.debug.values.update(zip(self.debug.values, values, strict=True))

    def script_out(self, port: int, data: bytes, *, size: int = 1) -> None:
        """The guest writes `data` to `port`, in items of `size` bytes: one exit."""
        count, rest = divmod(len(data), size)
        if rest or not count:
            raise ValueError(f"{len(data)} bytes are no items of {size}")
        self._extend(_Access(abi.Exit.IO, port, size, count, data))

    def script_in(self, port: int, *, size: int = 1, count: int = 1) -> Answer:
        """The guest reads `count` items of `size` bytes from `port`."""
        return self._extend(_Access(abi.Exit.IO, port, size, count, None)).answer

    def script_mmio_write(self, gpa: int, size: int, value: int) -> None:
        """The guest writes the low `size` bytes of `value` to `gpa`.

        No exit at a doorbell, nor in a memslot that may be written.
        """
        data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        self._extend(_Access(abi.Exit.MMIO, gpa, size, 1, data))

    def script_mmio_read(self, gpa: int, size: int) -> Answer:
        """The guest reads `size` bytes from `gpa`; no exit in a memslot that may be read."""
        return self._extend(_Access(abi.Exit.MMIO, gpa, size, 1, None)).answer

    def script_shutdown(self) -> None:
        """The guest ends in a triple fault."""
        self.script_exit(abi.Exit.SHUTDOWN)

    def script_halt(self) -> None:
        """The guest halts until the next kick."""
        self.script_exit(abi.Exit.HLT)

    def script_exit(self, reason: int) -> None:
        """An exit without details: any abi.Exit, or abi.EXIT_EFAULT.

        Exit.HLT is none, as in KVM with its LAPICs in the kernel: it is script_halt().
        """
        self._append(reason)

    def script_execute(self, *addresses: int) -> None:
        """The guest executes the instructions there, one byte each and of no effect.

        Unless a debugger has put `int3` or `out` there, watches the address, or steps.
        """
        for address in addresses:
            self._append(_Execution(address))

    def wait_idle(self, timeout: float = 5.0) -> bool:
        """Wait up to `timeout` seconds for the whole script to be served; True if it is."""
        with self._changed:
            return self._changed.wait_for(self._served, timeout)

    def _served(self) -> bool:
        return not self._script and self._pending is None

    def run(self) -> int:
        """Finish the last access, then the next exit of the script, or Exit.INTR if kicked."""
        self.runs += 1
        self.finish_access()
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self.run_page.immediate_exit or self._script)
                if self.run_page.immediate_exit:
                    self.run_page.immediate_exit = 0
                    return abi.Exit.INTR
                step = self._script.popleft()
                if step == abi.Exit.HLT:
                    self._changed.wait_for(lambda: self.run_page.immediate_exit)
                    continue
                if isinstance(step, _Execution):
                    reason = self._execute(step)
                    if reason == abi.Exit.DEBUG and self.rip == step.address:
                        self._script.appendleft(step)  # it has not been executed
                        step = reason
                else:
                    reason = step if isinstance(step, int) else self._access(step)
                if reason is None:
                    self._changed.notify_all()
                    continue
                if isinstance(step, _Access) and reason == abi.EXIT_EFAULT:
                    self._script.appendleft(step)  # it will be tried again
                else:
                    self._pending = step
                self.run_page.exit_reason = reason
                return reason

    def finish_access(self) -> None:
        """Take the VMM's answer to the access of the last exit."""
        with self._changed:
            step, self._pending = self._pending, None
            if isinstance(step, _Access) and step.data is None:
                mmio = step.reason == abi.Exit.MMIO
                value = self.mmio_value() if mmio else int.from_bytes(self.io_data(), "little")
                step.answer.value = value
            self._changed.notify_all()

    def kick(self) -> None:
        """Have run() return Exit.INTR, now or when it is called next."""
        with self._changed:
            self.run_page.immediate_exit = 1
            self._changed.notify_all()

    @property
    def rip(self) -> int:
        """What instruction_pointer() says."""
        return self.debug.values["rip"]

    @rip.setter
    def rip(self, value: int) -> None:
        self.debug.values["rip"] = value

    def instruction_pointer(self) -> int:
        """As the test, or the script, has set it."""
        return self.rip

    def describe(self) -> str:
        """One line, without registers."""
        return f"cpu{self.index} (fake, {self.runs} runs)"

    def _extend(self, access: _Access) -> _Access:
        if access.size > 8 or not is_power_of_two(access.size):
            raise ValueError(f"no access has {access.size} bytes")
        self._append(access)
        return access

    def _append(self, step: _Step) -> None:
        with self._changed:
            self._script.append(step)
            self._changed.notify_all()

    def _execute(self, step: _Execution) -> int | None:
        """What exit it gives; None if the guest just goes on."""
        self.rip = step.address
        length = self.debug.execute(step.address)
        if length is None:
            return abi.Exit.DEBUG
        if length == 1:
            return self.debug.after(step.address + 1)
        self.io.direction, self.io.size, self.io.count = abi.IO_OUT, 1, 1
        self.io.port, self.io.data_offset = self.debug.operand(step.address), PAGE
        self.debug.values["rip"] += length
        self._script.appendleft(step)  # a debugger will want it executed in truth
        return abi.Exit.IO

    def _access(self, step: _Access) -> int | None:
        """What exit it gives, with run_page filled; None if a doorbell or memory took it."""
        if step.reason == abi.Exit.IO:
            self.io.direction = abi.IO_IN if step.data is None else abi.IO_OUT
            self.io.size, self.io.port, self.io.count = step.size, step.address, step.count
            self.io.data_offset = PAGE
            self.io_data()[:] = step.data or bytes(step.size * step.count)
        elif step.data is not None and self._vm.ring(step.address, step.size):
            return None
        elif (hva := self._vm.hva(step.address, step.size)) is not None:
            return self._touch(hva, step)
        else:
            self.mmio.phys_addr, self.mmio.len = step.address, step.size
            self.mmio.is_write = step.data is not None
            self.mmio.data = int.from_bytes(step.data or b"", "little")
        return step.reason

    def _touch(self, hva: int, step: _Access) -> int | None:
        """Do an access to a memslot."""
        try:
            if step.data is None:
                step.answer.value = int.from_bytes(host_memory.peek(hva, step.size), "little")
            else:
                host_memory.poke(hva, step.data)
                self._vm.wrote(step.address, step.size)
        except OSError:
            return abi.EXIT_EFAULT
        return None
