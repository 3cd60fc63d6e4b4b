"""A KVM without a kernel: same faces as minivmm.kvm, calls recorded, vCPUs that follow a script.

    system = FakeSystem()
    machine = Machine.build(spec, system, ...)
    vcpu = system.vms[0].vcpus[0]
    vcpu.script_out(0x3F8, b"A")
    answer = vcpu.script_mmio_read(0xC000_0014, 4)
    vcpu.script_shutdown()

It refuses what KVM refuses (overlapping slots, double doorbells, ...) with HostError. A scripted
write to a doorbell rings it without an exit, and an access inside a memslot goes to the memory
there, or ends run() with EFAULT if that is forbidden (mprotect), as with EPT or NPT.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from construct import Int64ul, Struct

from minivmm.errors import HostError
from minivmm.kvm import abi
from minivmm.kvm.dirty_abi import bitmap_size
from minivmm.kvm.ioctl import Ioctl
from minivmm.saved import build, parse
from minivmm.spec.x86 import CpuidEntry
from minivmm.testing.fake_vcpu import PAGE, FakeVcpu

_STATE = Struct("clock" / Int64ul)

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


@dataclass(frozen=True)
class MemorySlot:
    """A slot as it was set: guest and host address, size in bytes."""

    gpa: int
    size: int
    hva: int
    readonly: bool
    logged: bool = False


class FakeVm:
    """Keeps what it was told, for tests to look at; refuses what KVM would refuse."""

    def __init__(self) -> None:
        self.vcpus: list[FakeVcpu] = []
        self.slots: dict[int, MemorySlot] = {}
        self.written: dict[int, set[int]] = {}
        """Slot that is logged -> numbers of the pages that vCPUs wrote to."""
        self.irq_lines: dict[int, bool] = {}
        """Level of every pin that was ever driven."""
        self.irqfds: set[tuple[int, int]] = set()
        """(fd, GSI)."""
        self.resamplers: dict[int, int] = {}
        """GSI -> eventfd that is written to when the guest acknowledges."""
        self.vfio_files: list[int] = []
        """Descriptors of VFIO that it was shown."""
        self.routes: dict[int, tuple[int, int]] = {}
        """GSI -> (address, data) of the last set_routes()."""
        self.ioeventfds: dict[tuple[int, int], int] = {}
        """(address, length) -> fd."""
        self.irqchip_resets = 0
        self._began = time.monotonic()
        self.closed = False

    def set_memory_region(
        self,
        slot: int,
        gpa: int,
        size: int,
        hva: int,
        *,
        readonly: bool = False,
        logged: bool = False,
    ) -> None:
        """Record a slot, or delete it if `size` is 0; its log goes with it."""
        old = self.slots.get(slot)
        if size == 0:
            _require(old is not None, Ioctl.SET_USER_MEMORY_REGION, f"slot {slot} is not there")
            del self.slots[slot]
            self.written.pop(slot, None)
            return
        aligned = not (gpa | size | hva) % PAGE
        _require(aligned, Ioctl.SET_USER_MEMORY_REGION, f"slot {slot} is not made of pages")
        same_size = old is None or old.size == size
        _require(same_size, Ioctl.SET_USER_MEMORY_REGION, f"slot {slot} cannot be resized")
        others = (kept for number, kept in self.slots.items() if number != slot)
        overlap = any(kept.gpa < gpa + size and gpa < kept.gpa + kept.size for kept in others)
        _require(not overlap, Ioctl.SET_USER_MEMORY_REGION, f"slot {slot} overlaps another")
        self.slots[slot] = MemorySlot(gpa, size, hva, readonly, logged)
        if not logged:
            self.written.pop(slot, None)

    def dirty_pages(self, slot: int, size: int) -> bytearray:
        """The pages that vCPUs wrote to since the last call."""
        known = self.slots.get(slot)
        logged = known is not None and known.logged and known.size == size
        _require(logged, Ioctl.GET_DIRTY_LOG, f"slot {slot} has no log of {size} bytes")
        bitmap = bytearray(bitmap_size(size))
        for page in self.written.pop(slot, ()):
            bitmap[page // 8] |= 1 << page % 8
        return bitmap

    def wrote(self, gpa: int, size: int) -> None:
        """A vCPU wrote `size` bytes at `gpa`, in a slot."""
        for number, slot in self.slots.items():
            if slot.logged and slot.gpa <= gpa and gpa + size <= slot.gpa + slot.size:
                first, last = ((at - slot.gpa) // PAGE for at in (gpa, gpa + size - 1))
                self.written.setdefault(number, set()).update(range(first, last + 1))

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

    def set_irqfd(
        self, fd: int, gsi: int, *, assign: bool = True, resample: int | None = None
    ) -> None:
        """Record or forget; an eventfd serves one GSI at a time."""
        if resample is not None:
            self.resamplers[gsi] = resample
        if assign:
            used = any(fd == other for other, _ in self.irqfds)
            _require(not used, Ioctl.IRQFD, f"fd {fd} is used")
            self.irqfds.add((fd, gsi))
        else:
            self.irqfds.discard((fd, gsi))

    def set_routes(self, msi: Mapping[int, tuple[int, int]]) -> None:
        """Record the routes; the 24 pins go without saying."""
        self.routes = dict(msi)

    def show_vfio(self, fd: int, *, shown: bool = True) -> None:
        """Record it, or forget it."""
        if shown:
            self.vfio_files.append(fd)
        else:
            self.vfio_files.remove(fd)

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

    def hva(self, gpa: int, size: int) -> int | None:
        """Host address of `size` bytes at `gpa`, if a slot has them."""
        for slot in self.slots.values():
            if slot.gpa <= gpa and gpa + size <= slot.gpa + slot.size:
                return slot.hva + gpa - slot.gpa
        return None

    def ring(self, address: int, length: int) -> bool:
        """Signal the doorbell that a guest write hits; False if it hits none."""
        for key in ((address, length), (address, 0)):
            if key in self.ioeventfds:
                os.eventfd_write(self.ioeventfds[key], 1)
                return True
        return False

    def clock(self) -> float | None:
        """Seconds since the VM was made, or has been since another was that it goes on from."""
        return time.monotonic() - self._began

    def save_state(self) -> bytes:
        """The clock."""
        return build(_STATE, clock=int((time.monotonic() - self._began) * 1e9))

    def load_state(self, data: bytes) -> None:
        """Take such a state over."""
        self._began = time.monotonic() - parse("chips", _STATE, data).clock / 1e9

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
