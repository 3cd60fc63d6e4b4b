"""Numbers that the VMM's own platform chose, and that ACPI, the machine and the devices share.

Addresses follow reference F.11. None of it comes from a specification, except where noted.
"""

from __future__ import annotations

from minivmm.units import GIB, MIB

LOW_RAM_END = 3 * GIB
"""RAM below 4 GiB ends here; the rest continues at HIGH_RAM_START."""
HIGH_RAM_START = 4 * GIB

MMIO32_BASE = 0xC000_0000
MMIO32_SIZE = 512 * MIB
"""32-bit PCI window: 0xC0000000-0xDFFFFFFF."""

ECAM_BASE = 0xE000_0000
ECAM_SIZE = 1 * MIB
"""Configuration space of bus 0 (1 MiB a bus; PCIe base specification 7.2.2)."""

IOAPIC_BASE = 0xFEC0_0000
LAPIC_BASE = 0xFEE0_0000
IDENTITY_MAP_BASE = 0xFFFB_C000
TSS_BASE = 0xFFFB_D000
KVM_RESERVED_SIZE = 0x4000
"""KVM's identity map page and three TSS pages, 0xFFFBC000-0xFFFBFFFF (reference F.1)."""

SERIAL_PORT = 0x3F8
SERIAL_GSI = 4
"""COM1 as every PC has it."""

PCI_CONFIG_PORT = 0xCF8
"""CF8/CFC configuration mechanism, 8 ports."""

KEYBOARD_PORT = 0x64
"""i8042 command port: writing 0xFE there resets the machine."""

POWER_PORT = 0x600
"""Our power block, 4 ports: reset register, sleep control, sleep status, power button event."""
RESET_PORT = POWER_PORT
SLEEP_CONTROL_PORT = POWER_PORT + 1
SLEEP_STATUS_PORT = POWER_PORT + 2
POWER_EVENT_PORT = POWER_PORT + 3
"""Read by the GED method: bit 0 set once after a power button press; reading clears it."""
RESET_VALUE = 0x06
SLEEP_TYPE_S5 = 5
"""_S5 package value; Linux writes (5 << 2) | 0x20 to sleep control (reference F.11)."""

GED_GSI = 9
"""Interrupt of the generic event device (power button)."""

FIRST_PCI_GSI = 16
PCI_GSIS = 8
"""I/O APIC pins of PCI interrupt pins; 16-23 are theirs on most PCs."""


def pci_gsi(slot: int) -> int:
    """The GSI that INTA# of the function in `slot` (0..31) drives: neighbours do not share."""
    return FIRST_PCI_GSI + slot % PCI_GSIS


FIRST_MSI_GSI = 24
"""GSIs 0-23 are IOAPIC pins; MSI routes start here."""

MAX_NODES = 64
"""NUMA nodes that Linux on x86-64 is built for by default (CONFIG_NODES_SHIFT=6)."""
