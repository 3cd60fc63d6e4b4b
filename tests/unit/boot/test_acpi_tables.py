"""ACPI tables in guest memory, parsed back and decompiled (ACPI 6.5 chapter 5)."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from minivmm.boot.acpi import MAX_CPUS, MemoryAffinity, Platform, write_tables
from minivmm.boot.nodes import Node, Topology
from minivmm.errors import UsageError
from minivmm.memory.guest import GuestMemory
from minivmm.memory.layout import AddressMap, RegionRequest, plan
from minivmm.spec import platform
from minivmm.spec.acpi import (
    AddressSpace,
    Fadt,
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
from minivmm.units import GIB, MIB

IASL = shutil.which("iasl")
BIG_MAP = plan(4 * GIB, [RegionRequest("vmem0", 8 * GIB, 2 * MIB, None)], 40)
NODES = Topology(
    (Node((1,), GIB), Node((), 0), Node((0,), 3 * GIB)),
    ((10, 20, 30), (20, 10, 255), (31, 254, 10)),
)
"""The last node spans the hole below 4 GiB; the middle one has nothing but a device's region."""


def tables(
    memory: GuestMemory, address_map: AddressMap, cpus: int = 2, numa: Topology | None = None
) -> dict[str, bytes]:
    """Signature -> bytes of every table that a guest finds from the RSDP."""
    hotplug = tuple(MemoryAffinity(w.base, w.size, 1) for w in address_map.regions.values())
    rsdp = memory.load(write_tables(memory, Platform(address_map, cpus, hotplug, numa)), Rsdp)
    found = {"XSDT": read_table(memory, rsdp.xsdt_address)}
    for (address,) in struct.iter_unpack("<Q", found["XSDT"][36:]):
        table = read_table(memory, address)
        found[table[:4].decode()] = table
    found["DSDT"] = read_table(memory, Fadt.parse(found["FACP"]).x_dsdt)
    return found


def read_table(memory: GuestMemory, address: int) -> bytes:
    return memory.read(address, memory.load(address, TableHeader).length)


def test_every_table_is_there_with_a_right_checksum(
    small_memory: GuestMemory, small_map: AddressMap
) -> None:
    found = tables(small_memory, small_map)
    assert set(found) == {"XSDT", "FACP", "DSDT", "APIC", "MCFG", "SRAT"}
    assert {name: sum(table) & 0xFF for name, table in found.items()} == dict.fromkeys(found, 0)


def test_rsdp_is_where_kernels_search_and_checks_out(
    small_memory: GuestMemory, small_map: AddressMap
) -> None:
    address = write_tables(small_memory, Platform(small_map, 1))
    data = small_memory.read(address, 36)
    assert 0xE0000 <= address < 0x100000
    assert address % 16 == 0
    assert data[:8] == b"RSD PTR "
    assert sum(data[:20]) & 0xFF == 0
    assert sum(data) & 0xFF == 0
    assert (data[15], struct.unpack_from("<I", data, 20)[0]) == (2, 36)


def test_fadt_is_hardware_reduced_and_announces_what_is_missing(
    small_memory: GuestMemory, small_map: AddressMap
) -> None:
    raw = tables(small_memory, small_map)["FACP"]
    flags = struct.unpack_from("<I", raw, 112)[0]
    boot_arch = struct.unpack_from("<H", raw, 109)[0]
    assert (len(raw), raw[8]) == (276, 6)
    assert flags >> 20 & 1  # HW_REDUCED_ACPI
    assert flags >> 10 & 1  # RESET_REG_SUP
    assert boot_arch & 0b100100 == 0b100100  # no VGA, no CMOS RTC
    assert boot_arch & 0b1011 == 0  # no legacy devices, no 8042; MSI supported
    assert raw[46:109] == bytes(63)  # no SCI, PM1, PM timer, GPE


def test_fadt_registers_are_the_power_ports(
    small_memory: GuestMemory, small_map: AddressMap
) -> None:
    fadt = Fadt.parse(tables(small_memory, small_map)["FACP"])

    def port(number: int) -> GenericAddress:
        return GenericAddress(AddressSpace.IO, bit_width=8, access_size=1, address=number)

    assert fadt.reset_reg == port(platform.RESET_PORT)
    assert fadt.reset_value == platform.RESET_VALUE
    assert fadt.sleep_control_reg == port(platform.SLEEP_CONTROL_PORT)
    assert fadt.sleep_status_reg == port(platform.SLEEP_STATUS_PORT)


@pytest.mark.parametrize("cpus", [1, 2, 255])
def test_madt_has_every_cpu_and_the_ioapic(
    small_memory: GuestMemory, small_map: AddressMap, cpus: int
) -> None:
    raw = tables(small_memory, small_map, cpus)["APIC"]
    assert Madt.parse(raw).lapic_address == 0xFEE00000
    rest = raw[Madt.SIZE :]
    for index in range(cpus):
        entry = MadtLocalApic.parse(rest[8 * index :])
        assert (entry.type, entry.length, entry.apic_id, entry.flags) == (0, 8, index, 1)
    ioapic = MadtIoApic.parse(rest[8 * cpus :])
    assert (ioapic.type, ioapic.ioapic_id, ioapic.gsi_base) == (1, 0, 0)
    assert ioapic.address == 0xFEC00000
    assert len(rest) == 8 * cpus + 12


def test_mcfg_is_bus_0_only(small_memory: GuestMemory, small_map: AddressMap) -> None:
    raw = tables(small_memory, small_map)["MCFG"]
    assert len(raw) == Mcfg.SIZE + McfgAllocation.SIZE
    entry = McfgAllocation.parse(raw[Mcfg.SIZE :])
    assert (entry.base, entry.segment) == (0xE0000000, 0)
    assert (entry.start_bus, entry.end_bus) == (0, 0)


def test_srat_flags_only_device_regions_hot_pluggable(small_memory: GuestMemory) -> None:
    raw = tables(small_memory, BIG_MAP)["SRAT"]
    assert struct.unpack_from("<I", raw, 36)[0] == 1
    rest = raw[Srat.SIZE :]
    cpus = [SratLocalApic.parse(rest[16 * i :]) for i in range(2)]
    assert [(c.type, c.apic_id, c.node_low, c.flags) for c in cpus] == [(0, 0, 0, 1), (0, 1, 0, 1)]
    memory = [SratMemory.parse(rest[32 + 40 * i :]) for i in range(3)]
    assert [(m.node, m.base, m.size, m.flags) for m in memory] == [
        (0, 0, 3 * GIB, 1),
        (0, 4 * GIB, 1 * GIB, 1),
        (1, 6 * GIB, 8 * GIB, 3),
    ]
    assert len(rest) == 2 * 16 + 3 * 40


def test_srat_cuts_boot_memory_at_node_borders_and_at_the_hole(small_memory: GuestMemory) -> None:
    rest = tables(small_memory, BIG_MAP, numa=NODES)["SRAT"][Srat.SIZE :]
    cpus = [SratLocalApic.parse(rest[16 * i :]) for i in range(2)]
    memory = [SratMemory.parse(rest[32 + 40 * i :]) for i in range(4)]
    assert [(c.apic_id, c.node_low, c.flags) for c in cpus] == [(1, 0, 1), (0, 2, 1)]
    assert [(m.node, m.base, m.size, m.flags) for m in memory] == [
        (0, 0, GIB, 1),
        (1, 6 * GIB, 8 * GIB, 3),
        (2, GIB, 2 * GIB, 1),
        (2, 4 * GIB, GIB, 1),
    ]
    assert len(rest) == 2 * 16 + 4 * 40


def test_slit_has_a_row_for_each_node_it_is_measured_from(small_memory: GuestMemory) -> None:
    raw = tables(small_memory, BIG_MAP, numa=NODES)["SLIT"]
    assert struct.unpack_from("<Q", raw, 36)[0] == 3
    assert list(raw[Slit.SIZE :]) == [10, 20, 30, 20, 10, 255, 31, 254, 10]
    assert sum(raw) & 0xFF == 0


@pytest.mark.parametrize("cpus", [0, MAX_CPUS + 1])
def test_impossible_cpu_count_is_refused(
    small_memory: GuestMemory, small_map: AddressMap, cpus: int
) -> None:
    with pytest.raises(UsageError, match="use 1 to 255"):
        write_tables(small_memory, Platform(small_map, cpus))


def test_too_many_devices_are_refused(small_memory: GuestMemory, small_map: AddressMap) -> None:
    hotplug = (MemoryAffinity(4 * GIB, 2 * GIB, 0),) * 4000
    with pytest.raises(UsageError, match="fewer memory devices"):
        write_tables(small_memory, Platform(small_map, 1, hotplug))


@pytest.mark.skipif(IASL is None, reason="iasl is not installed (package acpica-tools)")
@pytest.mark.parametrize("name", ["FACP", "APIC", "MCFG", "SRAT", "SLIT", "XSDT"])
def test_iasl_decompiles_the_table(small_memory: GuestMemory, tmp_path: Path, name: str) -> None:
    file = tmp_path / f"{name}.aml"
    file.write_bytes(tables(small_memory, BIG_MAP, numa=NODES)[name])
    assert IASL is not None
    done = subprocess.run([IASL, "-d", str(file)], capture_output=True, text=True, check=True)
    source = file.with_suffix(".dsl").read_text()
    complaints = ("error", "invalid", "unknown", "truncated", "checksum should")
    assert not [word for word in complaints if word in (done.stdout + done.stderr).lower()]
    assert not [word for word in complaints if word in source.lower()]
    assert f'"{name}"' in source
