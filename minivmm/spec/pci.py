"""PCI configuration space, capabilities and MSI-X (PCI Local Bus 3.0, chapter 6; PCIe base, 7)."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from minivmm.spec.record import Record, raw, record, u8, u16, u32

CONFIG_SIZE = 256
"""Bytes of the configuration space that capabilities and BARs live in."""
ECAM_FUNCTION_SIZE = 4096
"""Bytes of ECAM for each function; what lies behind CONFIG_SIZE is extended space."""
FIRST_CAPABILITY = 0x40
"""Where the device-specific part begins, behind the header."""

SLOTS = 32
BARS = 6


@record
class Header(Record):
    """Type 0 header (PCI 6.1): the first 64 bytes of configuration space."""

    vendor_id: int = u16(0xFFFF)
    device_id: int = u16(0xFFFF)
    command: int = u16()
    status: int = u16()
    revision: int = u8()
    class_code: bytes = raw(3)
    cache_line_size: int = u8()
    latency_timer: int = u8()
    header_type: int = u8()
    bist: int = u8()
    bars: bytes = raw(4 * BARS)
    cardbus_cis: int = u32()
    subsystem_vendor_id: int = u16()
    subsystem_id: int = u16()
    expansion_rom: int = u32()
    capabilities: int = u8()
    reserved: bytes = raw(7)
    interrupt_line: int = u8()
    interrupt_pin: int = u8()
    min_grant: int = u8()
    max_latency: int = u8()


COMMAND = Header.OFFSETS["command"]
STATUS = Header.OFFSETS["status"]
BAR0 = Header.OFFSETS["bars"]
CAPABILITIES = Header.OFFSETS["capabilities"]
HEADER_TYPE = Header.OFFSETS["header_type"]
MULTIFUNCTION = 1 << 7
"""Bit of the header type: there are more functions in the slot."""
EXPANSION_ROM = Header.OFFSETS["expansion_rom"]
INTERRUPT_LINE = Header.OFFSETS["interrupt_line"]
INTERRUPT_PIN = Header.OFFSETS["interrupt_pin"]
CACHE_LINE_SIZE = Header.OFFSETS["cache_line_size"]


class Command(IntFlag):
    """Command register (PCI 6.2.2); the bits that a memory-only function implements."""

    MEMORY_SPACE = 1 << 1
    BUS_MASTER = 1 << 2
    INTX_DISABLE = 1 << 10


class Status(IntFlag):
    """Status register (PCI 6.2.3)."""

    INTERRUPT = 1 << 3
    CAPABILITY_LIST = 1 << 4


class BarFlags(IntFlag):
    """Low bits of a memory BAR (PCI 6.2.5.1)."""

    TYPE_64 = 0b100
    PREFETCHABLE = 0b1000


IO_BAR = 1
"""Bit 0 of a BAR register: it is for ports, not for memory."""
BAR_TYPE = 0b110
"""The bits of a memory BAR that say how wide it is."""


class CapabilityId(IntEnum):
    """Capability identifiers (PCI appendix H)."""

    POWER_MANAGEMENT = 0x01
    MSI = 0x05
    VENDOR = 0x09
    EXPRESS = 0x10
    MSIX = 0x11
    ADVANCED_FEATURES = 0x13


INTA = 1
"""Interrupt Pin register of a function that uses INTA#; 0 means none (PCI 6.2.4)."""


class ClassCode(IntEnum):
    """24-bit class codes: base, sub-class, programming interface."""

    HOST_BRIDGE = 0x060000


@record
class CapabilityHeader(Record):
    """What every capability begins with."""

    id: int = u8()
    next: int = u8()


class MsiControl(IntFlag):
    """Message Control of MSI (PCI 6.8.1.3). Numbers of vectors are written as their logarithm."""

    ENABLE = 1 << 0
    CAPABLE = 0b111 << 1
    ENABLED = 0b111 << 4
    WIDE = 1 << 7
    MASKS = 1 << 8


MSI_CAPABLE_SHIFT, MSI_ENABLED_SHIFT = 1, 4


@record
class MsixCapability(Record):
    """MSI-X capability (PCI 6.8.2.3); `table` and `pba` hold a BAR number in their low 3 bits."""

    id: int = u8(CapabilityId.MSIX)
    next: int = u8()
    control: int = u16()
    table: int = u32()
    pba: int = u32()


class MsixControl(IntFlag):
    """Message Control of MSI-X; bits 10:0 are the number of table entries minus one."""

    FUNCTION_MASK = 1 << 14
    ENABLE = 1 << 15


@record
class MsixEntry(Record):
    """One entry of the MSI-X table (PCI 6.8.2.6); at reset it is masked."""

    address_low: int = u32()
    address_high: int = u32()
    data: int = u32()
    control: int = u32(1)


MSIX_ENTRY_MASKED = 1
"""Vector control, bit 0."""


class Express:
    """Offsets in the PCI Express capability (PCIe 7.5.3), and the type of device in its flags."""

    FLAGS = 2
    LINK = 0x0C
    LINK_SIZE = 8
    LINK2 = 0x2C
    VERSION = 0xF
    TYPE = 0xF0
    ENDPOINT = 0x00
    INTEGRATED_ENDPOINT = 0x90


POWER_CONTROL = 4
"""Offset of control and status in the power management capability (PCI PM 3.2)."""


class AdvancedFeature(IntFlag):
    """Bits of AdvancedFeatures.offered."""

    TRANSACTIONS_PENDING = 1 << 0
    FUNCTION_RESET = 1 << 1


@record
class AdvancedFeatures(Record):
    """Advanced Features capability (PCI ECN "Advanced Capabilities", 2006).

    Function level reset for functions that have no PCIe capability: writing 1 to `control` resets.
    Drivers take it only together with `status`, which tells of transactions that are not over yet.
    """

    id: int = u8(CapabilityId.ADVANCED_FEATURES)
    next: int = u8()
    length: int = u8(6)
    offered: int = u8(AdvancedFeature.TRANSACTIONS_PENDING | AdvancedFeature.FUNCTION_RESET)
    control: int = u8()
    status: int = u8()


INITIATE_RESET = 1
"""Bit 0 of AdvancedFeatures.control; it reads as 0."""


class ConfigAddress(IntFlag):
    """Port CF8 (PCI 3.2.2.3.2): enable, bus 23:16, device 15:11, function 10:8, register 7:2."""

    ENABLE = 1 << 31
    IMPLEMENTED = 0x80FF_FFFC
