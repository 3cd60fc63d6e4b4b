"""Describes the machine to the guest: builds all ACPI tables and writes them into guest memory.

    RSDP -> XSDT -> FADT -> DSDT (dsdt.py)
                    MADT   CPUs and I/O APIC
                    MCFG   PCI configuration space of bus 0
                    SRAT   which CPUs and which memory, now and later, belong to which node
                    SLIT   distances of the nodes, if the user declared any

ACPI is hardware-reduced: no SCI, PM timer, GPEs or fixed registers, hence nothing of them to model
or to probe. Linux then also drops PIC and PIT; time comes from kvmclock (reference F.11).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from minivmm.boot import places
from minivmm.boot.dsdt import dsdt_body
from minivmm.boot.nodes import Topology
from minivmm.boot.numa import resolve
from minivmm.errors import UsageError
from minivmm.memory.guest import GuestMemory
from minivmm.memory.layout import AddressMap
from minivmm.spec import platform
from minivmm.spec.acpi import (
    AddressSpace,
    AffinityFlag,
    BootArch,
    Fadt,
    FadtFlag,
    GenericAddress,
    Madt,
    MadtIoApic,
    MadtLocalApic,
    Mcfg,
    McfgAllocation,
    Rsdp,
    Slit,
    Srat,
    SratLocalApic,
    SratMemory,
    TableHeader,
)
from minivmm.spec.record import Record
from minivmm.units import align_up

MAX_CPUS = 255
"""8-bit APIC ids 0..254; 255 is the broadcast address."""

_LENGTH_OFFSET = TableHeader.OFFSETS["length"]
_CHECKSUM_OFFSET = TableHeader.OFFSETS["checksum"]
_RSDP_CHECKED = 20


@dataclass(frozen=True)
class MemoryAffinity:
    """Hot-pluggable memory: `size` bytes from guest physical address `base` belong to `node`."""

    base: int
    size: int
    node: int


@dataclass(frozen=True)
class Platform:
    """What the tables describe, besides the fixed addresses in spec/platform.py."""

    address_map: AddressMap
    cpus: int
    hotplug: tuple[MemoryAffinity, ...] = ()
    numa: Topology | None = None
    """Nodes of CPUs and boot memory; without them, node 0 has it all."""

    @property
    def topology(self) -> Topology:
        """`numa`, or the only node."""
        memory = sum(window.size for window in self.address_map.ram)
        return self.numa or resolve((), cpus=self.cpus, memory=memory, devices={})


def write_tables(memory: GuestMemory, machine: Platform) -> int:
    """Write every table below 1 MiB; returns the gpa of the RSDP.

    Raises UsageError for a number of CPUs outside 1..255, or for more memory devices than fit.
    """
    if not 1 <= machine.cpus <= MAX_CPUS:
        raise UsageError(f"{machine.cpus} CPUs: use 1 to {MAX_CPUS} (--cpus)")
    writer = _Writer(memory, places.ACPI + align_up(Rsdp.SIZE, 16))
    dsdt = writer.add(
        seal(TableHeader(signature=b"DSDT", revision=2), dsdt_body(machine.address_map))
    )
    tables = [
        writer.add(fadt(dsdt)),
        writer.add(madt(machine.cpus)),
        writer.add(mcfg(machine.address_map)),
        writer.add(srat(machine)),
    ]
    if machine.topology.distances:
        tables.append(writer.add(slit(machine.topology)))
    xsdt = writer.add(
        seal(TableHeader(signature=b"XSDT"), struct.pack(f"<{len(tables)}Q", *tables))
    )
    memory.write(places.ACPI, rsdp(xsdt))
    return places.ACPI


def seal(table: Record, *rest: bytes | Record) -> bytes:
    """`table` (which starts with a TableHeader) and `rest` as one, with length and checksum."""
    parts = (part if isinstance(part, bytes) else part.build() for part in rest)
    data = bytearray(b"".join([table.build(), *parts]))
    data[_LENGTH_OFFSET : _LENGTH_OFFSET + 4] = len(data).to_bytes(4, "little")
    data[_CHECKSUM_OFFSET] = _checksum(data)
    return bytes(data)


def rsdp(xsdt: int) -> bytes:
    """The root pointer to the XSDT at gpa `xsdt`; there is no RSDT."""
    data = bytearray(Rsdp(xsdt_address=xsdt).build())
    data[Rsdp.OFFSETS["checksum"]] = _checksum(data[:_RSDP_CHECKED])
    data[Rsdp.OFFSETS["extended_checksum"]] = _checksum(data)
    return bytes(data)


def fadt(dsdt: int) -> bytes:
    """FADT that points to the DSDT at gpa `dsdt`, says what a PC has and this machine has not."""
    return seal(
        Fadt(
            iapc_boot_arch=BootArch.VGA_NOT_PRESENT
            | BootArch.NO_PCIE_ASPM
            | BootArch.CMOS_RTC_NOT_PRESENT,
            flags=FadtFlag.WBINVD
            | FadtFlag.PWR_BUTTON
            | FadtFlag.SLP_BUTTON
            | FadtFlag.RESET_REG_SUP
            | FadtFlag.HW_REDUCED_ACPI,
            reset_reg=_port(platform.RESET_PORT),
            reset_value=platform.RESET_VALUE,
            x_dsdt=dsdt,
            sleep_control_reg=_port(platform.SLEEP_CONTROL_PORT),
            sleep_status_reg=_port(platform.SLEEP_STATUS_PORT),
        )
    )


def madt(cpus: int) -> bytes:
    """`cpus` local APICs with ids from 0, one I/O APIC, and no overrides.

    None is needed: there is no PIT on IRQ 0 and no SCI, and the DSDT tells trigger and polarity.
    """
    apics = (MadtLocalApic(processor_uid=index, apic_id=index) for index in range(cpus))
    ioapic = MadtIoApic(ioapic_id=0, address=platform.IOAPIC_BASE, gsi_base=0)
    return seal(Madt(lapic_address=platform.LAPIC_BASE), *apics, ioapic)


def mcfg(address_map: AddressMap) -> bytes:
    """Configuration space of bus 0, the only one."""
    return seal(Mcfg(), McfgAllocation(base=address_map.ecam.base, start_bus=0, end_bus=0))


def srat(machine: Platform) -> bytes:
    """Nodes of CPUs, boot memory and hot-pluggable memory.

    The last is what makes Linux set up bounce buffers at boot for memory above 4 GiB that comes
    later, and know the later memory's node (reference D.8). Boot memory must not be hot-pluggable.
    """
    topology = machine.topology
    cpus = (SratLocalApic(node_low=node, apic_id=cpu) for node, cpu in topology.cpus_by_node())
    return seal(Srat(), *cpus, *_memory_affinities(machine))


def slit(topology: Topology) -> bytes:
    """Distances from every node to every node."""
    rows = (bytes(row) for row in topology.distances)
    return seal(Slit(localities=len(topology.nodes)), *rows)


def _memory_affinities(machine: Platform) -> list[SratMemory]:
    """By node, as the CPUs: then Linux gives the nodes their own numbers (Topology)."""
    boot = [
        SratMemory(node=node, base=part.base, size=part.size)
        for node, part in machine.topology.split(machine.address_map.ram)
    ]
    later = [
        SratMemory(
            node=region.node,
            base=region.base,
            size=region.size,
            flags=AffinityFlag.ENABLED | AffinityFlag.HOT_PLUGGABLE,
        )
        for region in machine.hotplug
    ]
    return sorted([*boot, *later], key=lambda entry: entry.node)


def _port(port: int) -> GenericAddress:
    return GenericAddress(space=AddressSpace.IO, bit_width=8, access_size=1, address=port)


def _checksum(data: bytes | bytearray) -> int:
    """The byte that makes `data`, with 0 in its place, sum to 0 modulo 256."""
    return -sum(data) & 0xFF


class _Writer:
    """Puts tables one behind the other, 16-byte aligned."""

    def __init__(self, memory: GuestMemory, start: int) -> None:
        self._memory = memory
        self._next = start

    def add(self, table: bytes) -> int:
        """gpa where `table` now is. Raises UsageError when the room is used up."""
        address = self._next
        self._next = align_up(address + len(table), 16)
        if self._next > places.ACPI + places.ACPI_ROOM:
            raise UsageError(
                f"ACPI tables exceed {places.ACPI_ROOM} bytes: use fewer memory devices"
            )
        self._memory.write(address, table)
        return address
