"""Offsets and sizes of boot structures, typed in from their specifications."""

import pytest

from minivmm.spec import acpi, acpi_resources, bootparams, e820, elf, pvh
from minivmm.spec.record import Record


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (bootparams.SetupHeader, 0x26C - 0x1F1),
        (bootparams.BootParams, 4096),
        (e820.E820Entry, 20),
        (elf.ElfHeader, 64),
        (elf.ProgramHeader, 56),
        (elf.NoteHeader, 12),
        (pvh.StartInfo, 56),
        (pvh.ModuleEntry, 32),
        (pvh.MemmapEntry, 24),
        (acpi.Rsdp, 36),
        (acpi.TableHeader, 36),
        (acpi.GenericAddress, 12),
        (acpi.Fadt, 276),
        (acpi.Madt, 44),
        (acpi.MadtLocalApic, 8),
        (acpi.MadtIoApic, 12),
        (acpi.Mcfg, 44),
        (acpi.McfgAllocation, 16),
        (acpi.Srat, 48),
        (acpi.SratLocalApic, 16),
        (acpi.SratMemory, 40),
    ],
)
def test_size(kind: type[Record], size: int) -> None:
    assert size == kind.SIZE
    assert len(kind().build()) == size


@pytest.mark.parametrize(
    ("kind", "name", "offset"),
    [
        (bootparams.SetupHeader, "syssize", 0x1F4 - 0x1F1),
        (bootparams.SetupHeader, "header", 0x202 - 0x1F1),
        (bootparams.SetupHeader, "cmd_line_ptr", 0x228 - 0x1F1),
        (bootparams.SetupHeader, "xloadflags", 0x236 - 0x1F1),
        (bootparams.SetupHeader, "pref_address", 0x258 - 0x1F1),
        (bootparams.SetupHeader, "init_size", 0x260 - 0x1F1),
        (bootparams.BootParams, "acpi_rsdp_addr", 0x070),
        (bootparams.BootParams, "ext_ramdisk_image", 0x0C0),
        (bootparams.BootParams, "e820_entries", 0x1E8),
        (bootparams.BootParams, "setup_header", 0x1F1),
        (bootparams.BootParams, "e820_table", 0x2D0),
        (pvh.StartInfo, "rsdp_paddr", 32),
        (pvh.StartInfo, "memmap_entries", 48),
        (acpi.Fadt, "iapc_boot_arch", 109),
        (acpi.Fadt, "flags", 112),
        (acpi.Fadt, "reset_reg", 116),
        (acpi.Fadt, "minor_version", 131),
        (acpi.Fadt, "x_dsdt", 140),
        (acpi.Fadt, "sleep_control_reg", 244),
        (acpi.Fadt, "sleep_status_reg", 256),
        (acpi.SratMemory, "base", 8),
        (acpi.SratMemory, "flags", 28),
    ],
)
def test_offset(kind: type[Record], name: str, offset: int) -> None:
    assert kind.OFFSETS[name] == offset


@pytest.mark.parametrize(
    "kind",
    [
        acpi_resources.FixedMemory,
        acpi_resources.WordRange,
        acpi_resources.DwordRange,
        acpi_resources.QwordRange,
        acpi_resources.ExtendedInterrupt,
    ],
)
def test_large_resource_counts_what_follows_its_header(kind: type[Record]) -> None:
    built = kind().build()
    assert built[0] & 0x80
    assert int.from_bytes(built[1:3], "little") == kind.SIZE - 3


def test_small_resource_counts_what_follows_its_tag() -> None:
    built = acpi_resources.IoPorts().build()
    assert built[0] & 0x7 == acpi_resources.IoPorts.SIZE - 1
