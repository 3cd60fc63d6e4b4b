"""The boot CPU's state at the kernel's first instruction, for both entry protocols.

The 64-bit entry also needs page tables and a GDT in guest memory; they are written here.
Sources: Linux Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"; Xen docs/misc/pvh.pandoc;
Intel SDM vol. 3, 2.5 (control registers), 3.4.5 (descriptors), 4.5 (4-level paging).
"""

from __future__ import annotations

import struct

from minivmm.boot import places
from minivmm.memory.guest import GuestMemory
from minivmm.spec.x86 import CpuState, Regs, Segment, Sregs, Table
from minivmm.units import GIB, MIB

CR0_PE = 1 << 0
CR0_ET = 1 << 4
CR0_NE = 1 << 5
CR0_WP = 1 << 16
CR0_PG = 1 << 31
CR4_PAE = 1 << 5
EFER_LME = 1 << 8
EFER_LMA = 1 << 10

CODE_SELECTOR = 0x10
DATA_SELECTOR = 0x18
TASK_SELECTOR = 0x20
"""The boot protocol fixes the first two (__BOOT_CS, __BOOT_DS)."""

CODE_TYPE = 0xB  # execute, read, accessed
DATA_TYPE = 0x3  # read, write, accessed
BUSY_TSS_TYPE = 0xB
TSS_LIMIT = 0x67

PAGE_PRESENT_WRITABLE = 0x3
PAGE_LARGE = 0x80
IDENTITY_SIZE = 4 * GIB

_CODE_64 = Segment(selector=CODE_SELECTOR, type=CODE_TYPE, l=1)
_CODE_32 = Segment(selector=CODE_SELECTOR, type=CODE_TYPE, db=1)
_DATA = Segment(selector=DATA_SELECTOR, type=DATA_TYPE, db=1)
_TASK = Segment(selector=TASK_SELECTOR, type=BUSY_TSS_TYPE, limit=TSS_LIMIT, s=0, g=0)


def long_mode(memory: GuestMemory, *, entry: int, zero_page: int) -> CpuState:
    """64-bit entry at `entry`, RSI = `zero_page` (gpas): paging on, first 4 GiB mapped 1:1.

    Writes page tables and GDT at their places.
    """
    write_page_tables(memory)
    return CpuState(
        Regs(rip=entry, rsi=zero_page),
        Sregs(
            code=_CODE_64,
            data=_DATA,
            task=_TASK,
            gdt=_write_gdt(memory),
            cr0=CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG,
            cr3=places.PAGE_TABLES,
            cr4=CR4_PAE,
            efer=EFER_LME | EFER_LMA,
        ),
    )


def protected_mode(*, entry: int, start_info: int) -> CpuState:
    """PVH entry at `entry`, EBX = `start_info` (gpas): 32-bit flat segments, paging off.

    The protocol leaves GDTR undefined: the kernel loads its own before it touches a segment.
    """
    return CpuState(
        Regs(rip=entry, rbx=start_info),
        Sregs(code=_CODE_32, data=_DATA, task=_TASK, cr0=CR0_PE | CR0_ET),
    )


def write_page_tables(memory: GuestMemory) -> None:
    """Identity map of the first 4 GiB in 2 MiB pages: one PML4, one PDPT, four directories."""
    pdpt = places.PAGE_TABLES + 0x1000
    directories = pdpt + 0x1000
    count = IDENTITY_SIZE // GIB
    memory.write(places.PAGE_TABLES, struct.pack("<Q", pdpt | PAGE_PRESENT_WRITABLE))
    pointers = [directories + i * 0x1000 | PAGE_PRESENT_WRITABLE for i in range(count)]
    memory.write(pdpt, struct.pack(f"<{count}Q", *pointers))
    pages = range(0, IDENTITY_SIZE, 2 * MIB)
    entries = [page | PAGE_PRESENT_WRITABLE | PAGE_LARGE for page in pages]
    memory.write(directories, struct.pack(f"<{len(entries)}Q", *entries))


def descriptor(segment: Segment) -> int:
    """The 8-byte GDT entry that loads as `segment` (its base below 4 GiB)."""
    limit = segment.limit >> 12 if segment.g else segment.limit
    access = segment.type | segment.s << 4 | segment.dpl << 5 | segment.present << 7
    flags = segment.avl | segment.l << 1 | segment.db << 2 | segment.g << 3
    return (
        limit & 0xFFFF
        | (segment.base & 0xFFFFFF) << 16
        | access << 40
        | (limit >> 16 & 0xF) << 48
        | flags << 52
        | (segment.base >> 24 & 0xFF) << 56
    )


def _write_gdt(memory: GuestMemory) -> Table:
    """Two empty entries, code, data, and a 64-bit TSS descriptor, which takes two."""
    entries = [0, 0, descriptor(_CODE_64), descriptor(_DATA), descriptor(_TASK), 0]
    memory.write(places.GDT, struct.pack(f"<{len(entries)}Q", *entries))
    return Table(base=places.GDT, limit=8 * len(entries) - 1)
