"""Debugging one vCPU through KVM: its registers, its page tables, and what ends in Exit.DEBUG.

What of it a host's KVM really does is found out in debug_probe.py. Who debugs, and what is done
about a stop, is the machine's business (minivmm.debugger).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from ctypes import byref
from dataclasses import dataclass

from minivmm.errors import HostError
from minivmm.kvm import abi
from minivmm.kvm.debug_abi import (
    DR7_ALWAYS,
    GuestDebug,
    KvmDebugExit,
    KvmGuestDebug,
    KvmTranslation,
)
from minivmm.kvm.ioctl import Ioctl, call
from minivmm.kvm.registers import read_registers, write_registers

SLOTS = 4
"""Addresses that the processor watches at a time: DR0 to DR3."""

_LENGTHS = {1: 0, 2: 1, 8: 2, 4: 3}
"""DR7's two bits for a length in bytes."""


@dataclass(frozen=True)
class Watch:
    """An address that the processor watches: `kind` is "execute", "write" or "access".

    `size` is 1, 2, 4 or 8 bytes, `address` a multiple of it; 1 for "execute".
    """

    address: int
    size: int = 1
    kind: str = "execute"


@dataclass(frozen=True)
class DebugEvent:
    """An Exit.DEBUG: exception VECTOR_DB or VECTOR_BP, linear address, and DR6."""

    exception: int
    pc: int
    dr6: int


@dataclass(frozen=True)
class DebugFeatures:
    """What works on a host: stepping always does."""

    software: bool = True
    """`int3` in guest code is reported."""
    hardware: bool = True
    """Watched addresses are reported."""
    block_interrupts: bool = True
    """Stepping can leave interrupts out."""


_KINDS = {"execute": 0b00, "write": 0b01, "access": 0b11}


def dr7(watches: Sequence[Watch | None]) -> int:
    """DR7 that enables `watches` in DR0 to DR3 (Intel SDM vol. 3, 18.2.4)."""
    value = DR7_ALWAYS
    for slot, watch in enumerate(watches):
        if watch is not None:
            control = _KINDS[watch.kind] | _LENGTHS[watch.size] << 2
            value |= 2 << 2 * slot | control << 16 + 4 * slot
    return value


class VcpuDebug:
    """The debugging side of a vCPU, which must be out of run() for all of it.

    Everything raises HostError.
    """

    def __init__(self, fd: int, run_page: abi.KvmRun) -> None:
        self._fd = fd
        self._event = KvmDebugExit.from_buffer(run_page, abi.KvmRun.padding.offset)

    def registers(self) -> dict[str, int]:
        """All registers by GDB's names (minivmm.kvm.registers)."""
        return read_registers(self._fd)

    def set_registers(self, changes: Mapping[str, int]) -> None:
        """Change some."""
        write_registers(self._fd, changes)

    def translate(self, address: int) -> int | None:
        """The gpa of linear `address` by the vCPU's own page tables; None if it has none."""
        translation = KvmTranslation(linear_address=address)
        call(self._fd, Ioctl.TRANSLATE, byref(translation), to=f"translate {address:#x}")
        return translation.physical_address if translation.valid else None

    def control(self, flags: GuestDebug, watches: Sequence[Watch | None] = ()) -> None:
        """Choose what ends in Exit.DEBUG from the next run() on; GuestDebug(0) for nothing."""
        request = KvmGuestDebug(control=int(flags))
        for slot, watch in enumerate(watches):
            request.debugreg[slot] = 0 if watch is None else watch.address
        request.debugreg[7] = dr7(watches)
        call(self._fd, Ioctl.SET_GUEST_DEBUG, byref(request), to="debug the guest")

    def event(self) -> DebugEvent:
        """Details of the Exit.DEBUG that run() just returned."""
        event = self._event
        return DebugEvent(event.exception, event.pc, event.dr6)

    def tell_of_pause(self) -> None:
        """Have the guest's watchdogs forgive the time that the vCPU did not run.

        Linux looks at it where it has kvmclock; a guest without does not mind.
        """
        with contextlib.suppress(HostError):
            call(self._fd, Ioctl.KVMCLOCK_CTRL, to="tell the guest that it was paused")
