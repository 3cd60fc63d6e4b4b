"""Loads an ELF vmlinux through its PVH entry: segments, start_info, memory map.

Sources: System V ABI (ELF-64); Xen docs/misc/pvh.pandoc. Reference F.10.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from minivmm.boot import cpu, places, room
from minivmm.boot.cmdline import LINUX_LIMIT, encode_cmdline
from minivmm.boot.e820 import memory_map
from minivmm.errors import ImageError
from minivmm.memory.guest import GuestMemory
from minivmm.memory.layout import AddressMap, Window
from minivmm.spec.elf import (
    CLASS_64,
    LITTLE_ENDIAN,
    MACHINE_X86_64,
    NOTE_NAME_XEN,
    NOTE_PHYS32_ENTRY,
    TYPE_EXEC,
    ElfHeader,
    NoteHeader,
    ProgramHeader,
    SegmentType,
)
from minivmm.spec.pvh import MemmapEntry, ModuleEntry, StartInfo
from minivmm.spec.x86 import CpuState
from minivmm.units import GIB, align_up

_DAMAGED = "the file is damaged, copy or build it again"
_USE_BZIMAGE = "pass the bzImage instead (arch/x86/boot/bzImage)"

HIGHEST_INITRD = 2 * GIB - 1
"""Last address of an initrd: what bzImages of all ages accept is also safe for a vmlinux."""


@dataclasses.dataclass(frozen=True)
class ElfImage:
    """A checked vmlinux."""

    entry: int
    """gpa of the 32-bit PVH entry."""
    segments: tuple[tuple[int, bytes], ...]
    """(gpa, content) of every segment; zeroes that follow it are in `window` only."""
    window: Window
    """From the first to the last byte that the segments occupy in guest memory."""


def parse(kernel: bytes, name: str) -> ElfImage:
    """Check `kernel` (file content). Raises ImageError, naming the file `name`."""
    if len(kernel) < ElfHeader.SIZE:
        raise ImageError(f"{name}: only {len(kernel)} bytes long: {_DAMAGED}")
    header = ElfHeader.parse(kernel)
    _check_kind(header, name)
    programs = tuple(_program_headers(kernel, header, name))
    loads = [program for program in programs if program.type == SegmentType.LOAD and program.memsz]
    if not loads:
        raise ImageError(f"{name}: no segment to load (an object file?): {_USE_BZIMAGE}")
    base = min(program.paddr for program in loads)
    end = max(program.paddr + program.memsz for program in loads)
    entry = _pvh_entry(kernel, programs, name)
    if not any(load.paddr <= entry < load.paddr + load.memsz for load in loads):
        raise ImageError(f"{name}: PVH entry {entry:#x} lies outside every segment: {_DAMAGED}")
    return ElfImage(
        entry=entry,
        segments=tuple((load.paddr, _content(kernel, load, name)) for load in loads),
        window=Window(base, end - base),
    )


def load(
    memory: GuestMemory,
    address_map: AddressMap,
    *,
    kernel: bytes,
    name: str,
    cmdline: str,
    initrd: bytes | None,
    rsdp: int,
) -> CpuState:
    """Write everything into guest memory; returns the PVH entry state. Raises ImageError."""
    image = parse(kernel, name)
    room.check_kernel(address_map, image.window, name)
    memory.write(places.CMDLINE, encode_cmdline(cmdline, LINUX_LIMIT))
    for gpa, content in image.segments:
        memory.write(gpa, content)
    start = StartInfo(cmdline_paddr=places.CMDLINE, rsdp_paddr=rsdp)
    if initrd is not None:
        address = room.place_initrd(
            address_map, len(initrd), kernel=image.window, highest=HIGHEST_INITRD, name=name
        )
        memory.write(address, initrd)
        memory.store(places.MODULE_LIST, ModuleEntry(paddr=address, size=len(initrd)))
        start = dataclasses.replace(start, nr_modules=1, modlist_paddr=places.MODULE_LIST)
    entries = [MemmapEntry(e.base, e.size, e.type) for e in memory_map(address_map)]
    memory.write(places.MEMORY_MAP, b"".join(entry.build() for entry in entries))
    memory.store(
        places.START_INFO,
        dataclasses.replace(start, memmap_paddr=places.MEMORY_MAP, memmap_entries=len(entries)),
    )
    return cpu.protected_mode(entry=image.entry, start_info=places.START_INFO)


def _check_kind(header: ElfHeader, name: str) -> None:
    if header.klass != CLASS_64 or header.data != LITTLE_ENDIAN:
        raise ImageError(f"{name}: not a 64-bit little-endian ELF file: use an x86-64 kernel")
    if header.machine != MACHINE_X86_64:
        raise ImageError(
            f"{name}: ELF file for machine {header.machine}, not x86-64 ({MACHINE_X86_64}):"
            f" use an x86-64 kernel"
        )
    if header.type != TYPE_EXEC:
        raise ImageError(
            f"{name}: ELF type {header.type} is no static executable (a module, program or"
            f" library?): pass vmlinux or bzImage"
        )
    if header.phentsize != ProgramHeader.SIZE:
        raise ImageError(f"{name}: program headers of {header.phentsize} bytes: {_DAMAGED}")


def _program_headers(kernel: bytes, header: ElfHeader, name: str) -> Iterator[ProgramHeader]:
    end = header.phoff + header.phnum * ProgramHeader.SIZE
    if end > len(kernel):
        raise ImageError(
            f"{name}: truncated, program headers end at {end}, the file at {len(kernel)}:"
            f" {_DAMAGED}"
        )
    for offset in range(header.phoff, end, ProgramHeader.SIZE):
        yield ProgramHeader.parse(kernel[offset : offset + ProgramHeader.SIZE])


def _content(kernel: bytes, program: ProgramHeader, name: str) -> bytes:
    end = program.offset + program.filesz
    if end > len(kernel):
        raise ImageError(
            f"{name}: truncated, a segment ends at {end}, the file at {len(kernel)}: {_DAMAGED}"
        )
    if program.filesz > program.memsz:
        raise ImageError(f"{name}: segment at {program.paddr:#x} exceeds its memory: {_DAMAGED}")
    return kernel[program.offset : end]


def _pvh_entry(kernel: bytes, programs: tuple[ProgramHeader, ...], name: str) -> int:
    for program in programs:
        if program.type != SegmentType.NOTE:
            continue
        for owner, kind, description in _notes(_content(kernel, program, name), program.align):
            if (owner, kind) == (NOTE_NAME_XEN, NOTE_PHYS32_ENTRY) and len(description) in (4, 8):
                return int.from_bytes(description, "little")
    raise ImageError(
        f"{name}: no PVH entry note, so it cannot be started directly: build it with"
        f" CONFIG_PVH=y, or {_USE_BZIMAGE}"
    )


def _notes(data: bytes, alignment: int) -> Iterator[tuple[bytes, int, bytes]]:
    """(name, type, descriptor) of every note; a cut-off last one is left out."""
    step = 8 if alignment == 8 else 4
    offset = 0
    while offset + NoteHeader.SIZE <= len(data):
        note = NoteHeader.parse(data[offset : offset + NoteHeader.SIZE])
        start = offset + NoteHeader.SIZE
        description = align_up(start + note.namesz, step)
        offset = align_up(description + note.descsz, step)
        if description + note.descsz > len(data):
            return
        yield (
            data[start : start + note.namesz],
            note.type,
            data[description : description + note.descsz],
        )
