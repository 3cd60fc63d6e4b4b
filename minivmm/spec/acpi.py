"""ACPI tables as bytes: RSDP, table header, FADT, MADT, MCFG, SRAT, SLIT.

Source: ACPI 6.5 section 5.2; MCFG: PCI firmware specification 3.3, 4.1.2. Reference F.11, E.11.
The AML world has a file of its own: acpi_resources.py.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from minivmm.spec.record import Record, nested, pad, raw, record, u8, u16, u32, u64

OEM_ID = b"MINIVM"
OEM_TABLE_ID = b"MINIVMM"
CREATOR_ID = b"MVMM"
RSDP_REVISION = 2


class AddressSpace(IntEnum):
    """Space of a generic address."""

    MEMORY = 0
    IO = 1


class FadtFlag(IntFlag):
    """Fixed feature flags (table 5.10)."""

    WBINVD = 1 << 0
    PWR_BUTTON = 1 << 4
    """No fixed-hardware power button: it is a device in the DSDT, or absent."""
    SLP_BUTTON = 1 << 5
    RESET_REG_SUP = 1 << 10
    HW_REDUCED_ACPI = 1 << 20


class BootArch(IntFlag):
    """IA-PC boot architecture flags (table 5.11); bits 0, 1 (legacy devices, 8042) stay clear."""

    VGA_NOT_PRESENT = 1 << 2
    MSI_NOT_SUPPORTED = 1 << 3
    NO_PCIE_ASPM = 1 << 4
    CMOS_RTC_NOT_PRESENT = 1 << 5


class MadtType(IntEnum):
    """Interrupt controller structure types (table 5.21)."""

    LOCAL_APIC = 0
    IO_APIC = 1


class SratType(IntEnum):
    """Affinity structure types (section 5.2.16)."""

    LOCAL_APIC = 0
    MEMORY = 1


class AffinityFlag(IntFlag):
    """Flags of affinity structures; HOT_PLUGGABLE is for memory only."""

    ENABLED = 1 << 0
    HOT_PLUGGABLE = 1 << 1


@record
class Rsdp(Record):
    """36 bytes; `checksum` covers the first 20, `extended_checksum` all."""

    signature: bytes = raw(8, b"RSD PTR ")
    checksum: int = u8()
    oem_id: bytes = raw(6, OEM_ID)
    revision: int = u8(RSDP_REVISION)
    rsdt_address: int = u32()
    length: int = u32(36)
    xsdt_address: int = u64()
    extended_checksum: int = u8()
    reserved: bytes = pad(3)


@record
class TableHeader(Record):
    """36 bytes in front of every table; all bytes of the table sum to 0 modulo 256."""

    signature: bytes = raw(4)
    length: int = u32()
    """Bytes of the whole table."""
    revision: int = u8(1)
    checksum: int = u8()
    oem_id: bytes = raw(6, OEM_ID)
    oem_table_id: bytes = raw(8, OEM_TABLE_ID)
    oem_revision: int = u32(1)
    creator_id: bytes = raw(4, CREATOR_ID)
    creator_revision: int = u32(1)


@record
class GenericAddress(Record):
    """12 bytes: a register somewhere (section 5.2.3.2); widths in bits."""

    space: int = u8()
    bit_width: int = u8()
    bit_offset: int = u8()
    access_size: int = u8()
    address: int = u64()


@record
class Fadt(Record):
    """FADT revision 6 (276 bytes); fixed-hardware fields are 0 as hardware-reduced ACPI demands."""

    header: TableHeader = nested(TableHeader, TableHeader(signature=b"FACP", revision=6))
    firmware_ctrl: int = u32()
    dsdt: int = u32()
    reserved: int = u8()
    preferred_pm_profile: int = u8()
    fixed_hardware: bytes = pad(109 - 46)
    """SCI, PM1, PM2, PM timer, GPE blocks, their lengths and latencies."""
    iapc_boot_arch: int = u16()
    reserved_111: int = u8()
    flags: int = u32()
    reset_reg: GenericAddress = nested(GenericAddress)
    reset_value: int = u8()
    arm_boot_arch: int = u16()
    minor_version: int = u8()
    x_firmware_ctrl: int = u64()
    x_dsdt: int = u64()
    x_fixed_hardware: bytes = pad(244 - 148)
    sleep_control_reg: GenericAddress = nested(GenericAddress)
    sleep_status_reg: GenericAddress = nested(GenericAddress)
    hypervisor_vendor: bytes = raw(8, b"MINIVMM")


@record
class Madt(Record):
    """MADT (APIC): 44 bytes, followed by interrupt controller structures."""

    header: TableHeader = nested(TableHeader, TableHeader(signature=b"APIC", revision=5))
    lapic_address: int = u32()
    flags: int = u32()
    """Bit 0 (dual 8259 present) stays clear."""


@record
class MadtLocalApic(Record):
    """8 bytes: a CPU."""

    type: int = u8(MadtType.LOCAL_APIC)
    length: int = u8(8)
    processor_uid: int = u8()
    apic_id: int = u8()
    flags: int = u32(1)
    """Bit 0: enabled."""


@record
class MadtIoApic(Record):
    """12 bytes: an I/O APIC and the first global system interrupt it serves."""

    type: int = u8(MadtType.IO_APIC)
    length: int = u8(12)
    ioapic_id: int = u8()
    reserved: int = u8()
    address: int = u32()
    gsi_base: int = u32()


@record
class Mcfg(Record):
    """MCFG: 44 bytes, followed by one allocation for each PCI segment group."""

    header: TableHeader = nested(TableHeader, TableHeader(signature=b"MCFG"))
    reserved: bytes = pad(8)


@record
class McfgAllocation(Record):
    """16 bytes: configuration space of buses `start_bus`..`end_bus`, 1 MiB each, from `base`."""

    base: int = u64()
    segment: int = u16()
    start_bus: int = u8()
    end_bus: int = u8()
    reserved: bytes = pad(4)


@record
class Srat(Record):
    """SRAT: 48 bytes, followed by affinity structures."""

    header: TableHeader = nested(TableHeader, TableHeader(signature=b"SRAT", revision=3))
    must_be_one: int = u32(1)
    reserved: bytes = pad(8)


@record
class SratLocalApic(Record):
    """16 bytes: the node of a CPU; the node's upper 24 bits are in `node_high`."""

    type: int = u8(SratType.LOCAL_APIC)
    length: int = u8(16)
    node_low: int = u8()
    apic_id: int = u8()
    flags: int = u32(AffinityFlag.ENABLED)
    local_sapic_eid: int = u8()
    node_high: bytes = pad(3)
    clock_domain: int = u32()


@record
class SratMemory(Record):
    """40 bytes: the node of `size` bytes from guest physical address `base`."""

    type: int = u8(SratType.MEMORY)
    length: int = u8(40)
    node: int = u32()
    reserved_06: int = u16()
    base: int = u64()
    size: int = u64()
    reserved_18: int = u32()
    flags: int = u32(AffinityFlag.ENABLED)
    reserved_20: bytes = pad(8)


@record
class Slit(Record):
    """SLIT: 44 bytes, followed by one byte for each (from, to) pair of nodes, row by row."""

    header: TableHeader = nested(TableHeader, TableHeader(signature=b"SLIT"))
    localities: int = u64()
    """Number of nodes: there are its square of distances."""
