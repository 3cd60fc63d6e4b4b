"""The DSDT as iasl understands it, and its places for addresses."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from minivmm.boot.acpi import seal
from minivmm.boot.dsdt import dsdt_body
from minivmm.memory.layout import AddressMap, RegionRequest, plan
from minivmm.spec.acpi import TableHeader
from minivmm.units import GIB, MIB

IASL = shutil.which("iasl")
MAP = plan(512 * MIB, [RegionRequest("vmem0", 2 * GIB, 2 * MIB, None)], 39)


def decompile(address_map: AddressMap, folder: Path) -> str:
    if IASL is None:
        pytest.skip("iasl is not installed (package acpica-tools)")
    file = folder / "dsdt.aml"
    file.write_bytes(seal(TableHeader(signature=b"DSDT", revision=2), dsdt_body(address_map)))
    done = subprocess.run([IASL, "-d", str(file)], capture_output=True, text=True, check=True)
    assert "error" not in (done.stdout + done.stderr).lower()
    return re.sub(r"\s*/[*/][^\n]*", "", (folder / "dsdt.dsl").read_text())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return decompile(MAP, tmp_path_factory.mktemp("dsdt"))


def device(source: str, name: str) -> str:
    """The text of one device, by indentation."""
    match = re.search(rf"^( +)Device \({name}\)\n(.*?)^\1}}", source, re.M | re.S)
    assert match is not None
    return match.group(2)


def test_iasl_compiles_it_again_without_complaint(tmp_path: Path) -> None:
    decompile(MAP, tmp_path)
    assert IASL is not None
    command = [IASL, "-p", str(tmp_path / "again"), str(tmp_path / "dsdt.dsl")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "0 Errors, 0 Warnings, 0 Remarks" in done.stdout


def test_s5_is_the_sleep_type_that_the_power_ports_expect(source: str) -> None:
    assert re.search(r"Name \(\\_S5, Package \(0x04\)\s*{\s*0x05,\s*Zero", source)


def test_pci_root_has_bus_0_and_both_windows(source: str) -> None:
    text = re.sub(r"\s+", " ", device(source, "PCI0"))
    assert 'EisaId ("PNP0A08")' in text
    assert "WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, 0x0000, 0x0000," in text
    assert "IO (Decode16, 0x0CF8, 0x0CF8, 0x01, 0x08," in text
    assert "0xC0000000, 0xDFFFFFFF, 0x00000000, 0x20000000" in text
    base, end = f"0x{MAP.mmio64.base:016X}", f"0x{MAP.mmio64.end - 1:016X}"
    assert f"{base}, {end}, 0x0000000000000000, 0x{MAP.mmio64.size:016X}" in text


def test_every_slot_has_its_inta_routed_to_the_gsi_that_it_drives(source: str) -> None:
    """Slots 1-31, pin 0 (INTA#), no link device (ACPI 6.5, 6.2.13)."""
    text = re.sub(r"\s+", " ", device(source, "PCI0"))
    routes = re.findall(r"Package \(0x04\) { 0x(\w+), Zero, Zero, 0x(\w+) }", text)
    found = {int(address, 16): int(gsi, 16) for address, gsi in routes}
    assert found == {slot << 16 | 0xFFFF: 16 + slot % 8 for slot in range(1, 32)}


def test_ecam_and_power_ports_are_reserved(source: str) -> None:
    text = re.sub(r"\s+", " ", device(source, "BRD0"))
    assert 'EisaId ("PNP0C02")' in text
    assert "Memory32Fixed (ReadWrite, 0xE0000000, 0x00100000" in text
    assert "IO (Decode16, 0x0600, 0x0600, 0x01, 0x04" in text


def test_serial_port_has_com1_ports_and_edge_irq_4(source: str) -> None:
    text = re.sub(r"\s+", " ", device(source, "COM1"))
    assert 'EisaId ("PNP0501")' in text
    assert "IO (Decode16, 0x03F8, 0x03F8, 0x01, 0x08" in text
    assert re.search(r"Interrupt \(ResourceConsumer, Edge, ActiveHigh, .*{ 0x00000004", text)


def test_power_event_reads_the_port_and_notifies_the_button(source: str) -> None:
    text = re.sub(r"\s+", " ", device(source, "GED0"))
    assert '"ACPI0013"' in text
    assert re.search(r"Interrupt \(ResourceConsumer, Level, ActiveHigh, .*{ 0x00000009", text)
    assert "OperationRegion (PWRP, SystemIO, 0x0603, One)" in text
    assert "PWRE, 8" in text
    assert r"If ((PWRE & One)) { Notify (\_SB.PWRB, 0x80)" in text
    assert 'EisaId ("PNP0C0C")' in device(source, "PWRB")


def test_no_device_region_is_inside_a_window(tmp_path: Path) -> None:
    region = MAP.regions["vmem0"]
    assert region.end <= MAP.mmio64.base
    assert f"{region.base:016X}" not in decompile(MAP, tmp_path)
