"""Resource descriptors that stand in a _CRS buffer: what ports, memory and interrupts a device has.

Source: ACPI 6.5 section 6.4 (6.4.2 small, 6.4.3 large items).
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from minivmm.spec.record import Record, record, u8, u16, u32, u64

END_TAG = b"\x79\x00"
"""Closes a resource template; a checksum of 0 means "not checked"."""


class RangeType(IntEnum):
    """resource_type of address space descriptors."""

    MEMORY = 0
    IO = 1
    BUS = 2


class RangeFlag(IntFlag):
    """general_flags of address space descriptors; bit 0 clear means: produced for children."""

    MIN_FIXED = 1 << 2
    MAX_FIXED = 1 << 3


class InterruptFlag(IntFlag):
    """Flags of ExtendedInterrupt; without EDGE and ACTIVE_LOW: level, active high."""

    CONSUMER = 1 << 0
    EDGE = 1 << 1
    ACTIVE_LOW = 1 << 2


READ_WRITE = 1
"""Memory that is not cacheable and may be written."""
DECODE_16 = 1
"""The device decodes all 16 address lines of a port."""


@record
class IoPorts(Record):
    """8 bytes: `length` I/O ports that start somewhere in `minimum`..`maximum`."""

    tag: int = u8(0x47)
    decode: int = u8(DECODE_16)
    minimum: int = u16()
    maximum: int = u16()
    alignment: int = u8(1)
    length: int = u8()


@record
class FixedMemory(Record):
    """12 bytes: 32-bit fixed memory, `size` bytes from `base`."""

    tag: int = u8(0x86)
    length: int = u16(9)
    access: int = u8(READ_WRITE)
    base: int = u32()
    size: int = u32()


@record
class WordRange(Record):
    """16 bytes: a range of bus numbers or ports; `maximum` is inside the range."""

    tag: int = u8(0x88)
    length: int = u16(13)
    resource_type: int = u8(RangeType.BUS)
    general_flags: int = u8(RangeFlag.MIN_FIXED | RangeFlag.MAX_FIXED)
    type_flags: int = u8()
    granularity: int = u16()
    minimum: int = u16()
    maximum: int = u16()
    translation: int = u16()
    size: int = u16()


@record
class DwordRange(Record):
    """26 bytes: a range of 32-bit memory addresses; `maximum` is inside the range."""

    tag: int = u8(0x87)
    length: int = u16(23)
    resource_type: int = u8(RangeType.MEMORY)
    general_flags: int = u8(RangeFlag.MIN_FIXED | RangeFlag.MAX_FIXED)
    type_flags: int = u8(READ_WRITE)
    granularity: int = u32()
    minimum: int = u32()
    maximum: int = u32()
    translation: int = u32()
    size: int = u32()


@record
class QwordRange(Record):
    """46 bytes: a range of 64-bit memory addresses; `maximum` is inside the range."""

    tag: int = u8(0x8A)
    length: int = u16(43)
    resource_type: int = u8(RangeType.MEMORY)
    general_flags: int = u8(RangeFlag.MIN_FIXED | RangeFlag.MAX_FIXED)
    type_flags: int = u8(READ_WRITE)
    granularity: int = u64()
    minimum: int = u64()
    maximum: int = u64()
    translation: int = u64()
    size: int = u64()


@record
class ExtendedInterrupt(Record):
    """9 bytes: one global system interrupt."""

    tag: int = u8(0x89)
    length: int = u16(6)
    flags: int = u8(InterruptFlag.CONSUMER)
    count: int = u8(1)
    gsi: int = u32()
