"""The ELF structures that a vmlinux loader reads: file header, program header, note header.

Source: System V ABI (ELF-64 object file format); note 18: Linux include/xen/interface/elfnote.h.
"""

from __future__ import annotations

from enum import IntEnum

from minivmm.spec.record import Record, pad, raw, record, u8, u16, u32, u64

MAGIC = b"\x7fELF"
CLASS_64 = 2
LITTLE_ENDIAN = 1
TYPE_EXEC = 2
MACHINE_X86_64 = 62
NOTE_NAME_XEN = b"Xen\0"
NOTE_PHYS32_ENTRY = 18
"""Descriptor: 32-bit physical entry point of a PVH kernel, in 4 or 8 bytes."""


class SegmentType(IntEnum):
    """p_type values of interest."""

    LOAD = 1
    NOTE = 4


@record
class ElfHeader(Record):
    """64 bytes at the start of an ELF-64 file."""

    magic: bytes = raw(4, MAGIC)
    klass: int = u8(CLASS_64)
    data: int = u8(LITTLE_ENDIAN)
    ident_version: int = u8(1)
    ident_rest: bytes = pad(9)
    type: int = u16(TYPE_EXEC)
    machine: int = u16(MACHINE_X86_64)
    version: int = u32(1)
    entry: int = u64()
    phoff: int = u64()
    shoff: int = u64()
    flags: int = u32()
    ehsize: int = u16(64)
    phentsize: int = u16(56)
    phnum: int = u16()
    shentsize: int = u16()
    shnum: int = u16()
    shstrndx: int = u16()


@record
class ProgramHeader(Record):
    """56 bytes: one segment; offsets and sizes in bytes, addresses in guest memory."""

    type: int = u32()
    flags: int = u32()
    offset: int = u64()
    vaddr: int = u64()
    paddr: int = u64()
    filesz: int = u64()
    memsz: int = u64()
    align: int = u64()


@record
class NoteHeader(Record):
    """12 bytes in front of a note's name and descriptor, sizes in bytes without their padding."""

    namesz: int = u32()
    descsz: int = u32()
    type: int = u32()
