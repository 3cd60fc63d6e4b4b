"""The E820 memory map: how a PC's boot loader tells the kernel which addresses are RAM.

Source: Linux Documentation/arch/x86/zero-page.rst, ACPI 6.5 section 15.
"""

from __future__ import annotations

from enum import IntEnum

from minivmm.spec.record import Record, record, u32, u64


class E820Type(IntEnum):
    """What an address range is."""

    RAM = 1
    RESERVED = 2


@record
class E820Entry(Record):
    """20 bytes: `size` bytes from guest physical address `base` are of `type`."""

    base: int = u64()
    size: int = u64()
    type: int = u32()
