"""A KVM without a kernel: same faces as minivmm.kvm, calls recorded, vCPUs that follow a script.

    system = FakeSystem()
    machine = Machine.build(spec, system, ...)
    vcpu = system.vms[0].vcpus[0]
    vcpu.script_out(0x3F8, b"A")
    answer = vcpu.script_mmio_read(0xC000_0014, 4)
    vcpu.script_shutdown()

It refuses what KVM refuses (overlapping slots, double doorbells, ...) with HostError, and a
scripted write to a doorbell rings it without an exit.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from minivmm.errors import HostError
from minivmm.kvm import abi
from minivmm.kvm.exits import ExitArea
from minivmm.kvm.ioctl import Ioctl
from minivmm.spec.x86 import CpuidEntry, CpuState
from minivmm.units import is_power_of_two

_PAGE = 4096
_INDEXED = 1
"""KVM_CPUID_FLAG_SIGNIFCANT_INDEX."""

_CPUID = (
    CpuidEntry(0x0, eax=0xD, ebx=0x6874_7541, ecx=0x444D_4163, edx=0x6974_6E65),  # AuthenticAMD
    CpuidEntry(0x1, eax=0x0080_0F12, ebx=0x0001_0800, ecx=0x8120_2000, edx=0x078B_FBFF),
    CpuidEntry(0x7, flags=_INDEXED),
    CpuidEntry(0xB, flags=_INDEXED, edx=1),
    CpuidEntry(0xB, index=1, flags=_INDEXED, ecx=1, edx=1),
    CpuidEntry(0xD, flags=_INDEXED, eax=3, ebx=0x240, ecx=0x240),
    CpuidEntry(0x4000_0000, eax=0x4000_0001, ebx=0x4B4D_564B, ecx=0x564B_4D56, edx=0x4D),
    CpuidEntry(0x4000_0001, eax=0x0100_7EFB),
    CpuidEntry(0x8000_0000, eax=0x8000_0008, ebx=0x6874_7541, ecx=0x444D_4163, edx=0x6974_6E65),
    CpuidEntry(0x8000_0001, eax=0x0080_0F12, ecx=0x0000_0101, edx=0x2193_FBFF),
    CpuidEntry(0x8000_0008, eax=0x0030_3030),
)
"""A plain x86-64 processor with 48 physical address bits, as reference F.15 measured one."""

_CAPABILITIES = dict.fromkeys(abi.Cap, 1) | {
    abi.Cap.NR_MEMSLOTS: 32764,
    abi.Cap.IRQ_ROUTING: 4096,
    abi.Cap.MAX_VCPUS: 1024,
    abi.Cap.XSAVE2: 4096,
}


@dataclass
class Answer:
    """What the VMM answered to a scripted read; `value` is None until the guest goes on."""

    value: int | None = None


@dataclass(frozen=True)
class _Access:
    """A scripted IO or MMIO exit; `data` is what a write carries, None for a read."""

    reason: int
    address: int
    size: int
    count: int
    data: bytes | None
    answer: Answer = field(default_factory=Answer)


@dataclass(frozen=True)
class MemorySlot:
    """A slot as it was set: guest and host address, size in bytes."""

    gpa: int
    size: int
    hva: int
    readonly: bool


class FakeVcpu(ExitArea):
    """Follows its script; when it is over, the guest is halted: run() waits for a kick.

    Scripts may be extended at any time, from any thread.
    """

    def __init__(self, vm: FakeVm, index: int) -> None:
        super().__init__(bytearray(2 * _PAGE))
        self.index = index
        self.cpuid: list[CpuidEntry] = []
        """What initialise() was given."""
        self.states: list[CpuState | None] = []
        """The state of initialise(), then that of every reset()."""
        self.runs = 0
        """How often run() was called."""
        self._vm = vm
        self._script: deque[_Access | int] = deque()
        self._pending: _Access | int | None = None  # the exit that the VMM now works on
        self._changed = threading.Condition()

    def initialise(self, cpuid: Sequence[CpuidEntry], state: CpuState | None) -> None:
        """Record CPUID and first state."""
        self.cpuid = list(cpuid)
        self.states.append(state)

    def reset(self, state: CpuState | None) -> None:
        """Finish the pending access and record the state; the script goes on."""
        self.finish_access()
        self.states.append(state)

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
        """The guest writes the low `size` bytes of `value` to `gpa`; no exit at a doorbell."""
        data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        self._extend(_Access(abi.Exit.MMIO, gpa, size, 1, data))

    def script_mmio_read(self, gpa: int, size: int) -> Answer:
        """The guest reads `size` bytes from `gpa`."""
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
                elif isinstance(step, int) or self._show(step):
                    self._pending = step
                    reason = step if isinstance(step, int) else step.reason
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

    def describe(self) -> str:
        """One line, without registers."""
        return f"cpu{self.index} (fake, {self.runs} runs)"

    def _extend(self, access: _Access) -> _Access:
        if access.size > 8 or not is_power_of_two(access.size):
            raise ValueError(f"no access has {access.size} bytes")
        self._append(access)
        return access

    def _append(self, step: _Access | int) -> None:
        with self._changed:
            self._script.append(step)
            self._changed.notify_all()

    def _show(self, step: _Access) -> bool:
        """Fill run_page; False if there is nothing to show because a doorbell took the write."""
        if step.reason == abi.Exit.IO:
            self.io.direction = abi.IO_IN if step.data is None else abi.IO_OUT
            self.io.size, self.io.port, self.io.count = step.size, step.address, step.count
            self.io.data_offset = _PAGE
            self.io_data()[:] = step.data or bytes(step.size * step.count)
        elif step.data is not None and self._vm.ring(step.address, step.size):
            return False
        else:
            self.mmio.phys_addr, self.mmio.len = step.address, step.size
            self.mmio.is_write = step.data is not None
            self.mmio.data = int.from_bytes(step.data or b"", "little")
        return True


class FakeVm:
    """Keeps what it was told, for tests to look at; refuses what KVM would refuse."""

    def __init__(self) -> None:
        self.vcpus: list[FakeVcpu] = []
        self.slots: dict[int, MemorySlot] = {}
        self.irq_lines: dict[int, bool] = {}
        """Level of every pin that was ever driven."""
        self.irqfds: set[tuple[int, int]] = set()
        """(fd, GSI)."""
        self.routes: dict[int, tuple[int, int]] = {}
        """GSI -> (address, data) of the last set_routes()."""
        self.ioeventfds: dict[tuple[int, int], int] = {}
        """(address, length) -> fd."""
        self.irqchip_resets = 0
        self.closed = False

    def set_memory_region(
        self, slot: int, gpa: int, size: int, hva: int, *, readonly: bool = False
    ) -> None:
        """Record a slot, or delete it if `size` is 0."""
        old = self.slots.get(slot)
        if size == 0:
            _require(old is not None, Ioctl.SET_USER_MEMORY_REGION, f"slot {slot} is not there")
            del self.slots[slot]
            return
        aligned = not (gpa | size | hva) % _PAGE
        _require(aligned, Ioctl.SET_USER_MEMORY_REGION, f"slot {slot} is not made of pages")
        same_size = old is None or old.size == size
        _require(same_size, Ioctl.SET_USER_MEMORY_REGION, f"slot {slot} cannot be resized")
        others = (kept for number, kept in self.slots.items() if number != slot)
        overlap = any(kept.gpa < gpa + size and gpa < kept.gpa + kept.size for kept in others)
        _require(not overlap, Ioctl.SET_USER_MEMORY_REGION, f"slot {slot} overlaps another")
        self.slots[slot] = MemorySlot(gpa, size, hva, readonly)

    def create_vcpu(self, index: int) -> FakeVcpu:
        """A vCPU with an empty script."""
        taken = any(vcpu.index == index for vcpu in self.vcpus)
        _require(not taken, Ioctl.CREATE_VCPU, f"cpu{index} exists")
        vcpu = FakeVcpu(self, index)
        self.vcpus.append(vcpu)
        return vcpu

    def set_irq_line(self, gsi: int, level: bool) -> None:
        """Record the level."""
        self.irq_lines[gsi] = level

    def set_irqfd(self, fd: int, gsi: int, *, assign: bool = True) -> None:
        """Record or forget; an eventfd serves one GSI at a time."""
        if assign:
            used = any(fd == other for other, _ in self.irqfds)
            _require(not used, Ioctl.IRQFD, f"fd {fd} is used")
            self.irqfds.add((fd, gsi))
        else:
            self.irqfds.discard((fd, gsi))

    def set_routes(self, msi: Mapping[int, tuple[int, int]]) -> None:
        """Record the routes; the 24 pins go without saying."""
        self.routes = dict(msi)

    def set_ioeventfd(self, fd: int, address: int, length: int, *, assign: bool = True) -> None:
        """Record or forget a doorbell."""
        if assign:
            lengths = {known for at, known in self.ioeventfds if at == address}
            taken = length in lengths or 0 in lengths or (length == 0 and lengths)
            _require(not taken, Ioctl.IOEVENTFD, f"{address:#x} is a doorbell already")
            self.ioeventfds[address, length] = fd
        else:
            known = self.ioeventfds.get((address, length)) == fd
            _require(known, Ioctl.IOEVENTFD, f"{address:#x} is no such doorbell")
            del self.ioeventfds[address, length]

    def ring(self, address: int, length: int) -> bool:
        """Signal the doorbell that a guest write hits; False if it hits none."""
        for key in ((address, length), (address, 0)):
            if key in self.ioeventfds:
                os.eventfd_write(self.ioeventfds[key], 1)
                return True
        return False

    def reset_irqchips(self) -> None:
        """Count it."""
        self.irqchip_resets += 1

    def close(self) -> None:
        """Remember it."""
        self.closed = True


class FakeSystem:
    """A host whose KVM can do everything that minivmm asks for."""

    def __init__(self, cpuid: Sequence[CpuidEntry] = _CPUID) -> None:
        self.vms: list[FakeVm] = []
        self.closed = False
        self._cpuid = cpuid

    def check(self, capability: int) -> int:
        """As a host of reference F.15 answers."""
        return _CAPABILITIES.get(abi.Cap(capability), 0)

    def supported_cpuid(self) -> list[CpuidEntry]:
        """The leaves given, or those of a plain x86-64 processor."""
        return list(self._cpuid)

    def create_vm(self) -> FakeVm:
        """A VM, also found in `vms`."""
        vm = FakeVm()
        self.vms.append(vm)
        return vm

    def close(self) -> None:
        """Remember it."""
        self.closed = True


def _require(condition: bool, request: Ioctl, why: str) -> None:
    if not condition:
        raise HostError(f"fake KVM_{request.name} failed: {why}")
