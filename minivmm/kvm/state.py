"""CPU state of one vCPU: first values, capture at power-on, restore at reset.

Works on a vCPU's descriptor; running the vCPU is vcpu.py's business.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ctypes import byref
from dataclasses import asdict
from itertools import chain
from typing import Any

from minivmm.errors import HostError
from minivmm.kvm import abi
from minivmm.kvm.ioctl import Ioctl, Table, call
from minivmm.kvm.pieces import (
    EVENTS,
    MP_STATE,
    VcpuTraits,
    by_name,
    get_piece,
    get_pieces,
    pieces,
    set_piece,
)
from minivmm.spec.x86 import CpuidEntry, CpuState, Segment

MSR_TSC = 0x10
MSR_TSC_ADJUST = 0x3B
MSR_TSC_DEADLINE = 0x6E0

INITIAL_MSRS = {
    0x174: 0,  # SYSENTER_CS
    0x175: 0,  # SYSENTER_ESP
    0x176: 0,  # SYSENTER_EIP
    0xC000_0081: 0,  # STAR
    0xC000_0082: 0,  # LSTAR
    0xC000_0083: 0,  # CSTAR
    0xC000_0084: 0,  # FMASK
    0xC000_0102: 0,  # KERNEL_GS_BASE
    0x1A0: 1,  # MISC_ENABLE: fast strings
    0x2FF: 0x806,  # MTRR_DEF_TYPE: enabled, all memory write-back
    MSR_TSC: 0,  # KVM takes writing 0 as "in step with the other vCPUs"
}
"""MSRs before the first instruction (reference F.8). The guest reads every one of them, and every
KVM emulates every one of them whatever the processor, so a refusal is an error and not tolerated.
"""

_MTRRS = (*range(0x200, 0x210), 0x250, 0x258, 0x259, *range(0x268, 0x270))
"""Variable and fixed range MTRRs: guests write them, but older kernels leave them out of
KVM_GET_MSR_INDEX_LIST."""

_HYPERV_MSRS = range(0x4000_0000, 0x4000_0200)
"""Left alone: our guests have no Hyper-V leaves, so cannot reach them, and merely reading one has
KVM allocate its Hyper-V emulation."""

_LAST_MSRS = (MSR_TSC, MSR_TSC_ADJUST, MSR_TSC_DEADLINE)
"""To be written after the others, in this order (reference F.14)."""

_MSRS_PER_CALL = 128
"""KVM accepts up to 255."""

_DELIVERY_MODE = 7 << 8
_DELIVERY_NMI = 4 << 8
_DELIVERY_EXTINT = 7 << 8
"""LVT bits 10:8 (Intel SDM vol. 3, 12.5.1)."""


class PowerOnState:
    """Everything a guest can change in a vCPU, as it was when this object was made."""

    def __init__(self, fd: int, traits: VcpuTraits) -> None:
        self._fd = fd
        self._traits = traits
        self._pieces = get_pieces(fd, traits)
        self._msrs = _capture_msrs(fd, traits.msr_indices)

    @property
    def msr_indices(self) -> tuple[int, ...]:
        """The MSRs that a guest can change, in the order to write them."""
        return tuple(index for index, _ in self._msrs)

    def restore(self) -> None:
        """Put it all back. Raises HostError."""
        get_piece(self._fd, MP_STATE)  # an INIT or SIPI that waits would start this CPU afterwards
        set_state(self._fd, self._traits, self._pieces, self._msrs)

    def load(self, state: CpuState) -> None:
        """Set registers and segments for the first instruction; the rest stays as at power-on."""
        piece = by_name(self._traits)
        regs = abi.KvmRegs()
        for name in ("rip", "rsp", "rbx", "rsi", "rflags"):
            setattr(regs, name, getattr(state.regs, name))
        sregs = piece["sregs"].kind.from_buffer_copy(self._pieces["sregs"])
        wanted = state.sregs
        sregs.cs = _segment(wanted.code)
        sregs.tr = _segment(wanted.task)
        for name in ("ds", "es", "fs", "gs", "ss"):
            setattr(sregs, name, _segment(wanted.data))
        sregs.gdt = abi.KvmDtable(wanted.gdt.base, wanted.gdt.limit)
        sregs.idt = abi.KvmDtable(wanted.idt.base, wanted.idt.limit)
        for name in ("cr0", "cr3", "cr4", "efer"):
            setattr(sregs, name, getattr(wanted, name))
        set_piece(self._fd, piece["sregs"], sregs)
        set_piece(self._fd, piece["regs"], regs)


def set_state(
    fd: int, traits: VcpuTraits, values: Mapping[str, Any], msrs: Iterable[tuple[int, int]]
) -> None:
    """Set all pieces, by name, and MSRs in the order given, where they belong. Raises HostError."""
    for piece in pieces(traits):
        if piece is EVENTS:
            write_msrs(fd, msrs)
        set_piece(fd, piece, values[piece.name])


def set_cpuid(fd: int, entries: Sequence[CpuidEntry]) -> None:
    """Give the vCPU its CPUID leaves; possible before its first run only. Raises HostError."""
    table = Table(abi.KvmCpuid2, abi.KvmCpuidEntry2, len(entries))
    for slot, entry in zip(table.entries, entries, strict=True):
        for name in ("function", "index", "flags", "eax", "ebx", "ecx", "edx"):
            setattr(slot, name, getattr(entry, name))
    call(fd, Ioctl.SET_CPUID2, byref(table.head), to=f"set {len(entries)} CPUID leaves")


def set_lints(fd: int) -> None:
    """Wire the LAPIC's local pins as on a PC: LINT0 to the PIC, LINT1 to NMI (reference F.8)."""
    lapic = abi.KvmLapicState()
    call(fd, Ioctl.GET_LAPIC, byref(lapic), to="read the local APIC")
    for register, mode in (
        (abi.LAPIC_LVT_LINT0, _DELIVERY_EXTINT),
        (abi.LAPIC_LVT_LINT1, _DELIVERY_NMI),
    ):
        lapic[register] = lapic[register] & ~_DELIVERY_MODE | mode
    call(fd, Ioctl.SET_LAPIC, byref(lapic), to="set the local APIC")


def set_machine_check_banks(fd: int) -> None:
    """Give the vCPU one bank of machine checks, not KVM's 32.

    Nobody reports errors in them, and Linux reads and writes each of them at boot, by an exit each
    time. The number stands in bits 7:0 of MCG_CAP (Intel SDM vol. 3, 17.3.1.1). Raises HostError.
    """
    call(fd, Ioctl.X86_SETUP_MCE, byref(ctypes.c_uint64(1)), to="set up machine checks")


def write_msrs(fd: int, values: Iterable[tuple[int, int]]) -> None:
    """Write (index, value) pairs in order. Raises HostError that names the first one refused."""
    refused = [index for index, taken in _transfer(fd, Ioctl.SET_MSRS, values) if taken is None]
    if refused:
        raise HostError(
            f"cannot set MSR {refused[0]:#x}: this host's KVM refuses it, and the guest needs it;"
            " a newer host kernel should accept it"
        )


def read_msrs(fd: int, indices: Iterable[int]) -> dict[int, int]:
    """The values of those MSRs that can be read."""
    got = _transfer(fd, Ioctl.GET_MSRS, ((index, 0) for index in indices))
    return {index: value for index, value in got if value is not None}


def _capture_msrs(fd: int, suggested: Sequence[int]) -> list[tuple[int, int]]:
    """(index, value) of every MSR a guest can change, in the order to write them back.

    Those that refuse their own value are constants, and left out: a refusal at reset is an error.
    """
    wanted = {*suggested, *INITIAL_MSRS, *_MTRRS} - {*_HYPERV_MSRS, *_LAST_MSRS}
    values = read_msrs(fd, chain(sorted(wanted), _LAST_MSRS))
    values.update((index, value) for index, value in INITIAL_MSRS.items())  # the TSC ticks already
    written = _transfer(fd, Ioctl.SET_MSRS, values.items())
    return [(index, value) for index, value in written if value is not None]


def _transfer(
    fd: int, request: Ioctl, entries: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, int | None]]:
    """Pass `entries` to KVM; gives (index, value), with None for those KVM refused.

    KVM stops at the first it refuses and tells how many it took: go on after that one.
    """
    rest = list(entries)
    while rest:
        batch = rest[:_MSRS_PER_CALL]
        table = Table(abi.KvmMsrs, abi.KvmMsrEntry, len(batch))
        for slot, (index, value) in zip(table.entries, batch, strict=True):
            slot.index, slot.data = index, value
        taken = call(fd, request, byref(table.head), to=f"pass {len(batch)} MSRs")
        yield from ((slot.index, slot.data) for slot in table.entries[:taken])
        if taken < len(batch):
            yield batch[taken][0], None
        rest = rest[taken + 1 if taken < len(batch) else taken :]


def _segment(segment: Segment) -> abi.KvmSegment:
    return abi.KvmSegment(**asdict(segment))  # same names
