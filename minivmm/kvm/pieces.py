"""The pieces of a vCPU's state: which requests get and set each, in the order that KVM needs.

What is done with them is reset (state.py) and saving (saved.py).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import byref
from dataclasses import dataclass
from typing import Any

from minivmm.kvm import abi, saved_abi
from minivmm.kvm.ioctl import Ioctl, call


@dataclass(frozen=True)
class VcpuTraits:
    """What the host's KVM says about every vCPU; the sizes are bytes."""

    run_size: int
    """Size of the area shared with a vCPU."""
    xsave_size: int
    """Size of the XSAVE state; above 4096 only if dynamic features are enabled."""
    has_xcrs: bool
    """Whether XCR0 exists."""
    msr_indices: tuple[int, ...]
    """MSRs that KVM suggests to save."""
    has_sregs2: bool = False
    """Whether KVM tells the loaded page directory pointers."""
    scales_tsc: bool = False
    """Whether a guest's time stamp counter can run at another rate than the host's."""


@dataclass(frozen=True)
class Piece:
    """A part of the state: what it is called, its requests, and the ctypes type of its value."""

    name: str
    get: Ioctl
    set: Ioctl
    kind: type[Any]

    @property
    def size(self) -> int:
        """Bytes of its value."""
        return ctypes.sizeof(self.kind)


MP_STATE = Piece("mp-state", Ioctl.GET_MP_STATE, Ioctl.SET_MP_STATE, abi.KvmMpState)
EVENTS = Piece("events", Ioctl.GET_VCPU_EVENTS, Ioctl.SET_VCPU_EVENTS, abi.KvmVcpuEvents)


def pieces(traits: VcpuTraits) -> tuple[Piece, ...]:
    """All but MSRs, in the order to get and to set them (reference F.14).

    The multiprocessing state is first: getting it works off an INIT or SIPI that still waits. The
    local APIC is behind the special registers, which hold its base. MSRs come between it, which the
    TSC deadline needs, and the last piece, events: setting registers would drop exceptions.
    """
    get_xsave = Ioctl.GET_XSAVE2 if traits.xsave_size > 4096 else Ioctl.GET_XSAVE
    sregs = Piece("sregs", Ioctl.GET_SREGS, Ioctl.SET_SREGS, abi.KvmSregs)
    sregs2 = Piece("sregs", Ioctl.GET_SREGS2, Ioctl.SET_SREGS2, saved_abi.KvmSregs2)
    xsave = ctypes.c_uint8 * max(traits.xsave_size, 4096)
    xcrs = Piece("xcrs", Ioctl.GET_XCRS, Ioctl.SET_XCRS, abi.KvmXcrs)
    return (
        MP_STATE,
        Piece("regs", Ioctl.GET_REGS, Ioctl.SET_REGS, abi.KvmRegs),
        sregs2 if traits.has_sregs2 else sregs,
        Piece("xsave", get_xsave, Ioctl.SET_XSAVE, xsave),
        *((xcrs,) if traits.has_xcrs else ()),
        Piece("debugregs", Ioctl.GET_DEBUGREGS, Ioctl.SET_DEBUGREGS, abi.KvmDebugregs),
        Piece("lapic", Ioctl.GET_LAPIC, Ioctl.SET_LAPIC, abi.KvmLapicState),
        EVENTS,
    )


def get_piece(fd: int, piece: Piece) -> Any:
    """Its value now. Raises HostError."""
    value = piece.kind()
    call(fd, piece.get, byref(value), to=f"read the CPU state ({piece.name})")
    return value


def set_piece(fd: int, piece: Piece, value: Any) -> None:
    """Have it so. Raises HostError."""
    call(fd, piece.set, byref(value), to=f"set the CPU state ({piece.name})")


def get_pieces(fd: int, traits: VcpuTraits) -> dict[str, Any]:
    """All of them by name."""
    return {piece.name: get_piece(fd, piece) for piece in pieces(traits)}


def by_name(traits: VcpuTraits) -> Mapping[str, Piece]:
    """All of them by name, in their order."""
    return {piece.name: piece for piece in pieces(traits)}
