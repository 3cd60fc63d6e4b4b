"""Kernel images of a few instructions, for machines of which no more is wanted."""

from __future__ import annotations

import struct

from minivmm.guest_image import GuestImage
from minivmm.spec.elf import (
    NOTE_NAME_XEN,
    NOTE_PHYS32_ENTRY,
    ElfHeader,
    NoteHeader,
    ProgramHeader,
    SegmentType,
)

LONG_ENTRY = 0x200
"""Where a bzImage's code is entered in 64-bit mode; Documentation/arch/x86/boot.rst."""

LOAD_ADDRESS = 1 << 20
"""gpa of the code of an ELF image."""

INVALID = b"\x0f\x0b"  # ud2, without an IDT to go to: a triple fault
FOREVER = b"\xeb\xfe"  # jmp to itself


def bzimage(code: bytes) -> bytes:
    """An image, complete by the x86 boot protocol 2.15, of nothing but `code` (64-bit)."""
    body = (bytes(LONG_ENTRY) + code).ljust(0x1000, b"\x90")
    head = bytearray(2 * 512)
    fields: tuple[tuple[int, str, int], ...] = (
        (0x1F1, "<B", 1),  # setup_sects
        (0x1F4, "<I", len(body) // 16),
        (0x1FE, "<H", 0xAA55),
        (0x200, "<H", 0x6AEB),
        (0x202, "<I", 0x53726448),  # "HdrS"
        (0x206, "<H", 0x020F),
        (0x211, "<B", 1),  # loaded high
        (0x22C, "<I", 0x7FFFFFFF),  # initrd_addr_max
        (0x230, "<I", 2 << 20),  # kernel_alignment
        (0x234, "<B", 1),  # relocatable
        (0x236, "<H", 3),  # has a 64-bit entry
        (0x238, "<I", 2047),  # cmdline_size
        (0x258, "<Q", 16 << 20),  # pref_address
        (0x260, "<I", 8 << 20),  # init_size
    )
    for offset, form, value in fields:
        struct.pack_into(form, head, offset, value)
    return bytes(head) + body


def vmlinux(code: bytes) -> bytes:
    """An ELF image of nothing but `code`, entered in 32-bit mode at LOAD_ADDRESS by PVH.

    Other VMMs boot it too: a bzImage they enter in 16-bit mode.
    """
    name, address = NOTE_NAME_XEN, LOAD_ADDRESS.to_bytes(4, "little")
    note = NoteHeader(len(name), len(address), NOTE_PHYS32_ENTRY).build() + name + address
    at = ElfHeader.SIZE + 2 * ProgramHeader.SIZE
    body, size = at + len(note), len(code)
    head = ElfHeader(entry=LOAD_ADDRESS, phoff=ElfHeader.SIZE, phnum=2)
    programs = (
        ProgramHeader(SegmentType.NOTE, 4, at, 0, 0, len(note), len(note), 4),
        ProgramHeader(SegmentType.LOAD, 7, body, LOAD_ADDRESS, LOAD_ADDRESS, size, size, 1),
    )
    parts = (head.build(), *(program.build() for program in programs), note, code)
    return b"".join(parts).ljust(2 * 4096, b"\0")  # QEMU wants as much as a real kernel's header


def tiny_image() -> GuestImage:
    """One of these, with a command line and without an initrd, for machines on a fake KVM."""
    return GuestImage(bzimage(b"\xf4" * 4096), "tiny", "quiet", None)
