"""Kernel images written byte by byte from the boot protocol and the ELF specification."""

import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from minivmm.memory.guest import GuestMemory
from minivmm.memory.layout import AddressMap, RegionRequest, plan
from minivmm.memory.region import Region
from minivmm.units import GIB, MIB

HEADER_FIELDS = {
    "setup_sects": (0x1F1, "<B"),
    "syssize": (0x1F4, "<I"),
    "boot_flag": (0x1FE, "<H"),
    "jump": (0x200, "<H"),
    "header": (0x202, "<I"),
    "version": (0x206, "<H"),
    "loadflags": (0x211, "<B"),
    "initrd_addr_max": (0x22C, "<I"),
    "kernel_alignment": (0x230, "<I"),
    "relocatable_kernel": (0x234, "<B"),
    "xloadflags": (0x236, "<H"),
    "cmdline_size": (0x238, "<I"),
    "pref_address": (0x258, "<Q"),
    "init_size": (0x260, "<I"),
}
"""Name -> (offset in the file, format), copied from Linux Documentation/arch/x86/boot.rst."""


def build_bzimage(code: bytes = b"\x90" * 0x1000, **fields: int) -> bytes:
    setup_sects = fields.get("setup_sects", 3)
    size = (1 + (setup_sects or 4)) * 512
    data = bytearray(size)
    values = {
        "setup_sects": setup_sects,
        "syssize": len(code) // 16,
        "boot_flag": 0xAA55,
        "jump": 0x6AEB,
        "header": 0x53726448,
        "version": 0x020F,
        "loadflags": 1,
        "initrd_addr_max": 0x7FFFFFFF,
        "kernel_alignment": 2 * MIB,
        "relocatable_kernel": 1,
        "xloadflags": 3,
        "cmdline_size": 2047,
        "pref_address": 16 * MIB,
        "init_size": 8 * MIB,
    } | fields
    for name, value in values.items():
        offset, form = HEADER_FIELDS[name]
        struct.pack_into(form, data, offset, value)
    return bytes(data) + code


LINUX_NOTE = struct.pack("<III", 6, 5, 6) + b"Linux\0\0\0" + b"abcde\0\0\0"


def pvh_note(
    entry: int,
    *,
    width: int = 4,
    owner: bytes = b"Xen\0",
    kind: int = 18,
    before: bytes = LINUX_NOTE,
) -> bytes:
    return (
        before + struct.pack("<III", len(owner), width, kind) + owner + entry.to_bytes(8, "little")
    )


def build_elf(
    segments: list[tuple[int, bytes, int]],
    note: bytes = b"",
    *,
    klass: int = 2,
    machine: int = 62,
    kind: int = 2,
    align: int = 4,
) -> bytes:
    """`segments`: (physical address, content, size in memory)."""
    rows = [(1, paddr, content, memsz) for paddr, content, memsz in segments]
    rows += [(4, 0, note, len(note))] if note else []
    header = struct.pack(
        "<4sBBBB8xHHIQQQIHHHHHH",
        *(b"\x7fELF", klass, 1, 1, 0, kind, machine, 1, 0x1000000, 64, 0, 0, 64, 56),
        *(len(rows), 64, 0, 0),
    )
    offset = 64 + 56 * len(rows)
    programs, body = b"", b""
    for p_type, paddr, content, memsz in rows:
        at = offset + len(body)
        programs += struct.pack(
            "<IIQQQQQQ", p_type, 7, at, paddr, paddr, len(content), memsz, align
        )
        body += content.ljust(-(-len(content) // 8) * 8, b"\0")
    return header + programs + body


@pytest.fixture
def bzimage() -> Callable[..., bytes]:
    return build_bzimage


@pytest.fixture
def vmlinux() -> bytes:
    entry = 16 * MIB + 0x30
    return build_elf(
        [(16 * MIB, b"text" * 64, 256), (18 * MIB, b"data" * 16, 4096)], pvh_note(entry)
    )


@pytest.fixture
def elf() -> Callable[..., bytes]:
    return build_elf


@pytest.fixture
def note() -> Callable[..., bytes]:
    return pvh_note


@pytest.fixture
def small_map() -> AddressMap:
    """128 MiB of RAM and one device region."""
    return plan(128 * MIB, [RegionRequest("vmem0", 4 * GIB, 2 * MIB, None)], 40)


@pytest.fixture
def small_memory(small_map: AddressMap) -> Iterator[GuestMemory]:
    memory = GuestMemory()
    memory.add(0, Region(small_map.ram[0].size), name="low RAM")
    yield memory
    memory.close()


@pytest.fixture
def load(small_memory: GuestMemory, small_map: AddressMap) -> Callable[..., Any]:
    """load_kernel into the small machine with sensible defaults."""
    from minivmm.boot.image import load_kernel

    def run(kernel: bytes, **changes: Any) -> Any:
        arguments = {"name": "vmlinuz", "cmdline": "quiet", "initrd": None, "rsdp": 0xE0000}
        return load_kernel(small_memory, small_map, kernel=kernel, **(arguments | changes))

    return run
