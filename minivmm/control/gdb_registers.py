"""The registers of an x86-64 CPU as GDB knows them: target description, numbers, hex.

Feature names and the registers that each must have are GDB's (manual, "i386 Features"); the
control registers are in a feature of our own, which GDB shows under `info registers system`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from minivmm.kvm.registers import (
    CONTROL,
    SEGMENTS,
    X87,
    X87_CONTROL,
    XMM,
)


@dataclass(frozen=True)
class Register:
    """One register: size in bits, GDB's type and group."""

    name: str
    bits: int
    type: str
    group: str | None = None


_FLAGS = {
    "i386_eflags": (
        4,
        "CF:0 PF:2 AF:4 ZF:6 SF:7 TF:8 IF:9 DF:10 OF:11 NT:14 RF:16 VM:17 AC:18 VIF:19 VIP:20"
        " ID:21",
    ),
    "i386_mxcsr": (4, "IE:0 DE:1 ZE:2 OE:3 UE:4 PE:5 DAZ:6 IM:7 DM:8 ZM:9 OM:10 UM:11 PM:12 FZ:15"),
    "x64_cr0": (8, "PE:0 MP:1 EM:2 TS:3 ET:4 NE:5 WP:16 AM:18 NW:29 CD:30 PG:31"),
    "x64_cr4": (
        8,
        "VME:0 PVI:1 TSD:2 DE:3 PSE:4 PAE:5 MCE:6 PGE:7 PCE:8 OSFXSR:9 OSXMMEXCPT:10 UMIP:11"
        " LA57:12 VMXE:13 SMXE:14 FSGSBASE:16 PCIDE:17 OSXSAVE:18 SMEP:20 SMAP:21 PKE:22",
    ),
    "x64_efer": (8, "SCE:0 LME:8 LMA:10 NXE:11 SVME:12 LMSLE:13 FFXSR:14 TCE:15"),
}
"""Type -> its size in bytes and its bits."""


def _core() -> Iterator[Register]:
    for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"):
        yield Register(name, 64, "data_ptr" if name in ("rbp", "rsp") else "int64")
    yield from (Register(f"r{number}", 64, "int64") for number in range(8, 16))
    yield Register("rip", 64, "code_ptr")
    yield Register("eflags", 32, "i386_eflags")
    yield from (Register(name, 32, "int32") for name in SEGMENTS)
    yield from (Register(name, 80, "i387_ext") for name in X87)
    yield from (Register(name, 32, "int", "float") for name in X87_CONTROL)


def _sse() -> Iterator[Register]:
    yield from (Register(name, 128, "vec128") for name in XMM)
    yield Register("mxcsr", 32, "i386_mxcsr", "vector")


def _system() -> Iterator[Register]:
    types = {"cr0": "x64_cr0", "cr4": "x64_cr4", "efer": "x64_efer"}
    yield Register("k_gs_base", 64, "int64", "system")
    yield from (Register(name, 64, types.get(name, "int64"), "system") for name in CONTROL)


FEATURES = {
    "org.gnu.gdb.i386.core": tuple(_core()),
    "org.gnu.gdb.i386.sse": tuple(_sse()),
    "org.gnu.gdb.i386.segments": (
        Register("fs_base", 64, "int64"),
        Register("gs_base", 64, "int64"),
    ),
    "minivmm.x86-64.system": tuple(_system()),
}

REGISTERS = tuple(register for feature in FEATURES.values() for register in feature)
"""By their numbers in the protocol."""


def target_description() -> str:
    """The target.xml that `qXfer:features:read` gives."""
    lines = [
        '<?xml version="1.0"?>',
        '<!DOCTYPE target SYSTEM "gdb-target.dtd">',
        '<target version="1.0">',
        "<architecture>i386:x86-64</architecture>",
    ]
    number = 0
    for feature, registers in FEATURES.items():
        lines.append(f'<feature name="{feature}">')
        lines += _types({register.type for register in registers})
        for register in registers:
            group = f' group="{register.group}"' if register.group else ""
            lines.append(
                f'<reg name="{register.name}" bitsize="{register.bits}" type="{register.type}"'
                f' regnum="{number}"{group}/>'
            )
            number += 1
        lines.append("</feature>")
    lines.append("</target>")
    return "\n".join(lines) + "\n"


def to_hex(values: Mapping[str, int]) -> str:
    """All registers, as a `g` packet wants them."""
    return "".join(register_to_hex(register, values[register.name]) for register in REGISTERS)


def register_to_hex(register: Register, value: int) -> str:
    """One, in the target's byte order."""
    size = register.bits // 8
    return (value & (1 << register.bits) - 1).to_bytes(size, "little").hex()


def from_hex(text: str) -> dict[str, int]:
    """Undo `to_hex`; registers at the end may be missing. Raises ValueError."""
    data = bytes.fromhex(text)
    values: dict[str, int] = {}
    at = 0
    for register in REGISTERS:
        size = register.bits // 8
        if at + size > len(data):
            break
        values[register.name] = int.from_bytes(data[at : at + size], "little")
        at += size
    return values


def _types(used: set[str]) -> Iterator[str]:
    """Definitions of the types in `used` that GDB does not know by itself."""
    for name, (size, bits) in _FLAGS.items():
        if name in used:
            yield f'<flags id="{name}" size="{size}">'
            for bit in bits.split():
                label, _, position = bit.partition(":")
                yield f'<field name="{label}" start="{position}" end="{position}"/>'
            yield "</flags>"
    if "vec128" in used:
        members = (
            ("v4f", "v4_float", "ieee_single", 4),
            ("v2d", "v2_double", "ieee_double", 2),
            ("v16i8", "v16_int8", "int8", 16),
            ("v8i16", "v8_int16", "int16", 8),
            ("v4i32", "v4_int32", "int32", 4),
            ("v2i64", "v2_int64", "int64", 2),
        )
        for vector, _, element, count in members:
            yield f'<vector id="{vector}" type="{element}" count="{count}"/>'
        yield '<union id="vec128">'
        for vector, label, _, _ in members:
            yield f'<field name="{label}" type="{vector}"/>'
        yield '<field name="uint128" type="uint128"/>'
        yield "</union>"
