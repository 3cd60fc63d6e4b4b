"""Guest physical addresses that the loader chose for what it puts below 1 MiB.

Linux copies or replaces all of it early, except the ACPI tables, which are in a reserved range.

    0x01000  GDT
    0x02000  PVH start_info, module list, memory map
    0x07000  zero page (boot_params)
    0x08000  page tables, 6 pages
    0x10000  command line, 64 KiB
    0x9FC00  end of usable RAM below 1 MiB
    0xE0000  ACPI tables, the RSDP first
    0xFFFF0  reset vector
"""

from __future__ import annotations

from minivmm.units import KIB, MIB

GDT = 0x1000
START_INFO = 0x2000
MODULE_LIST = 0x2100
MEMORY_MAP = 0x2200
ZERO_PAGE = 0x7000
PAGE_TABLES = 0x8000
CMDLINE = 0x1_0000
CMDLINE_ROOM = 64 * KIB

LOW_USABLE_END = 0x9_FC00
"""Where a PC keeps its EBDA: everything from here to 1 MiB is reserved in the memory map."""
ACPI = 0xE_0000
ACPI_ROOM = 128 * KIB - 16
"""The range that kernels without other knowledge search for an RSDP (ACPI 6.5, 5.2.5.1)."""

RESET_VECTOR = 0xF_FFF0
"""Where a CPU in real mode starts a PC's firmware: F000:FFF0."""

KERNEL_START = 1 * MIB
"""No kernel is loaded below this."""
