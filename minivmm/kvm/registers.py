"""All registers of a vCPU by name, for a debugger: read together, written one by one.

Names are those of GDB's x86-64 target descriptions (GDB manual, "i386 Features"). Values are
unsigned integers. Works on a vCPU's descriptor; the vCPU must be out of run().
"""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import byref
from typing import Any

from minivmm.errors import HostError
from minivmm.kvm import abi
from minivmm.kvm.debug_abi import X87_AND_SSE, FxArea
from minivmm.kvm.ioctl import Ioctl, call
from minivmm.kvm.state import read_msrs, write_msrs

GENERAL = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"),
    *(f"r{number}" for number in range(8, 16)),
    "rip",
)
SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")
CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")
X87 = tuple(f"st{number}" for number in range(8))
X87_CONTROL = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
XMM = tuple(f"xmm{number}" for number in range(16))

_KERNEL_GS_BASE = 0xC000_0102
_EMPTY = 3
"""Two bits of the x87 tag word: a register that is not in use."""

_BASES = {"fs_base": "fs", "gs_base": "gs"}
_PLAIN_FPU = {"fctrl": "fcw", "fstat": "fsw", "fop": "last_opcode", "mxcsr": "mxcsr"}
_SPLIT_FPU = {
    "fioff": ("last_ip", 0),
    "fiseg": ("last_ip", 32),
    "fooff": ("last_dp", 0),
    "foseg": ("last_dp", 32),
}
"""Halves of 64-bit pointers; in 64-bit mode the "segments" are their upper halves."""


def read_registers(fd: int) -> dict[str, int]:
    """Every register of the vCPU behind `fd`. Raises HostError."""
    regs, sregs = abi.KvmRegs(), abi.KvmSregs()
    call(fd, Ioctl.GET_REGS, byref(regs), to="read registers")
    call(fd, Ioctl.GET_SREGS, byref(sregs), to="read registers")
    fpu = FxArea.from_buffer(_xsave(fd))
    values = {name: int(getattr(regs, name)) for name in GENERAL}
    values["eflags"] = regs.rflags
    values |= {name: int(getattr(sregs, name).selector) for name in SEGMENTS}
    values |= {name: int(getattr(sregs, segment).base) for name, segment in _BASES.items()}
    values |= {name: int(getattr(sregs, name)) for name in CONTROL}
    values["k_gs_base"] = read_msrs(fd, (_KERNEL_GS_BASE,)).get(_KERNEL_GS_BASE, 0)
    values |= {name: _number(fpu.fpr[i]) & (1 << 80) - 1 for i, name in enumerate(X87)}
    values |= {name: _number(fpu.xmm[i]) for i, name in enumerate(XMM)}
    values |= {name: int(getattr(fpu, field)) for name, field in _PLAIN_FPU.items()}
    for name, (field, shift) in _SPLIT_FPU.items():
        values[name] = getattr(fpu, field) >> shift & 0xFFFF_FFFF
    values["ftag"] = sum(0 if fpu.ftwx >> i & 1 else _EMPTY << 2 * i for i in range(8))
    return values


def write_registers(fd: int, changes: Mapping[str, int]) -> None:
    """Set some registers of the vCPU behind `fd`; the others keep what they have.

    Raises HostError for values that KVM refuses, and for segments: loading one means more than
    its selector.
    """
    fixed = [name for name in SEGMENTS if name in changes]
    if fixed:
        raise HostError(f"{fixed[0]} cannot be set: its hidden part is unknown")
    general = {"rflags" if name == "eflags" else name: value for name, value in changes.items()}
    regs = {name: general[name] for name in (*GENERAL, "rflags") if name in general}
    if regs:
        _change(fd, Ioctl.GET_REGS, Ioctl.SET_REGS, abi.KvmRegs(), regs)
    if any(name in changes for name in (*CONTROL, *_BASES)):
        _write_system(fd, changes)
    if "k_gs_base" in changes:
        write_msrs(fd, [(_KERNEL_GS_BASE, changes["k_gs_base"])])
    if any(name in changes for name in (*X87, *X87_CONTROL, *XMM, "mxcsr")):
        _write_fpu(fd, changes)


def _change(fd: int, get: Ioctl, put: Ioctl, structure: Any, fields: Mapping[str, int]) -> None:
    call(fd, get, byref(structure), to="read registers")
    for name, value in fields.items():
        setattr(structure, name, value)
    call(fd, put, byref(structure), to=f"set {', '.join(fields)}")


def _write_system(fd: int, changes: Mapping[str, int]) -> None:
    sregs = abi.KvmSregs()
    call(fd, Ioctl.GET_SREGS, byref(sregs), to="read registers")
    for name, segment in _BASES.items():
        if name in changes:
            getattr(sregs, segment).base = changes[name]
    for name in CONTROL:
        if name in changes:
            setattr(sregs, name, changes[name])
    call(fd, Ioctl.SET_SREGS, byref(sregs), to=f"set {', '.join(changes)}")


def _write_fpu(fd: int, changes: Mapping[str, int]) -> None:
    area = _xsave(fd)
    fpu = FxArea.from_buffer(area)
    fpu.xstate_bv |= X87_AND_SSE
    for names, array in ((X87, fpu.fpr), (XMM, fpu.xmm)):
        for index, name in enumerate(names):
            if name in changes:
                array[index][:] = changes[name].to_bytes(16, "little")
    for name, field in _PLAIN_FPU.items():
        if name in changes:
            setattr(fpu, field, changes[name])
    for name, (field, shift) in _SPLIT_FPU.items():
        if name in changes:
            kept = getattr(fpu, field) & ~(0xFFFF_FFFF << shift)
            setattr(fpu, field, kept | changes[name] << shift)
    if "ftag" in changes:
        tags = changes["ftag"]
        fpu.ftwx = sum(1 << i for i in range(8) if tags >> 2 * i & _EMPTY != _EMPTY)
    call(fd, Ioctl.SET_XSAVE, byref(area), to="set floating point registers")


def _xsave(fd: int) -> Any:
    """Not KVM_GET_FPU, which leaves out MXCSR."""
    area = abi.KvmXsave()
    call(fd, Ioctl.GET_XSAVE, byref(area), to="read registers")
    return area


def _number(data: Any) -> int:
    return int.from_bytes(bytes(data), "little")
