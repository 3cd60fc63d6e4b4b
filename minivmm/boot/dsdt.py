r"""The DSDT: the devices that the guest cannot discover by itself.

    \_S5                power off: what to write into the sleep control register
    \_SB.PCI0           PCI host bridge, bus 0 and nothing behind it
    \_SB.BRD0           ports and memory of the board that PCI must not use
    \_SB.COM1           serial port
    \_SB.PWRB           power button
    \_SB.GED0           the interrupt that says "power button pressed"

Everything Linux would probe for in vain costs exits at boot, so nothing else is described, and the
bridge has no _OSC. Its _PRT leads pins straight to the I/O APIC: there are no link devices.
Source: ACPI 6.5 chapters 5.6.9 (generic event device), 6, 7.4.2 (_S5); reference F.11.
"""

from __future__ import annotations

from minivmm.boot import aml
from minivmm.memory.layout import AddressMap
from minivmm.spec import platform
from minivmm.spec.acpi_resources import (
    DwordRange,
    ExtendedInterrupt,
    FixedMemory,
    InterruptFlag,
    IoPorts,
    QwordRange,
    WordRange,
)
from minivmm.spec.pci import INTA, SLOTS

NOTIFY_BUTTON_PRESSED = 0x80
"""Device notification of a power button (ACPI 6.5, table 5.168)."""
POWER_BLOCK_PORTS = 4

ANY_FUNCTION = 0xFFFF
"""Low half of an address in _PRT: the slot's functions all."""

PCI_NODE = 0
"""NUMA node of the PCI bridge: every machine has that one."""


def dsdt_body(address_map: AddressMap) -> bytes:
    """AML of the DSDT, without the table header."""
    return aml.name("\\_S5", _s5()) + aml.scope(
        "\\_SB",
        _pci_root(address_map),
        _board(address_map),
        _serial_port(),
        aml.device("PWRB", aml.name("_HID", aml.eisa_id("PNP0C0C"))),
        _event_device(),
    )


def _s5() -> bytes:
    return aml.package(*(aml.integer(value) for value in (platform.SLEEP_TYPE_S5, 0, 0, 0)))


def _pci_root(address_map: AddressMap) -> bytes:
    window, high = address_map.mmio32, address_map.mmio64
    windows = aml.resources(
        WordRange(minimum=0, maximum=0, size=1),
        _ports(platform.PCI_CONFIG_PORT, 8),
        DwordRange(minimum=window.base, maximum=window.end - 1, size=window.size),
        QwordRange(minimum=high.base, maximum=high.end - 1, size=high.size),
    )
    return aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A08")),
        aml.name("_CID", aml.eisa_id("PNP0A03")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_SEG", aml.integer(0)),
        aml.name("_BBN", aml.integer(0)),
        aml.name("_PXM", aml.integer(PCI_NODE)),
        aml.name("_CRS", windows),
        aml.name("_PRT", _pin_routes()),
    )


def _pin_routes() -> bytes:
    """INTA# of each slot (ACPI 6.5, 6.2.13); a GSI without a link is level-triggered."""
    return aml.package(
        *(
            aml.package(
                *map(aml.integer, (slot << 16 | ANY_FUNCTION, INTA - 1, 0, platform.pci_gsi(slot)))
            )
            for slot in range(1, SLOTS)
        )
    )


def _board(address_map: AddressMap) -> bytes:
    """Linux uses ECAM only if a motherboard device claims it."""
    ecam = address_map.ecam
    return aml.device(
        "BRD0",
        aml.name("_HID", aml.eisa_id("PNP0C02")),
        aml.name(
            "_CRS",
            aml.resources(
                FixedMemory(base=ecam.base, size=ecam.size),
                _ports(platform.POWER_PORT, POWER_BLOCK_PORTS),
            ),
        ),
    )


def _serial_port() -> bytes:
    return aml.device(
        "COM1",
        aml.name("_HID", aml.eisa_id("PNP0501")),
        aml.name("_UID", aml.integer(0)),
        aml.name(
            "_CRS",
            aml.resources(
                _ports(platform.SERIAL_PORT, 8),
                _interrupt(platform.SERIAL_GSI, InterruptFlag.CONSUMER | InterruptFlag.EDGE),
            ),
        ),
    )


def _event_device() -> bytes:
    """Level-triggered: a press before the driver is there waits, and reading the port releases it.

    The read clears the event, so the method asks once and tells the button.
    """
    event = aml.bit_and(aml.path("PWRE"), aml.integer(1))
    return aml.device(
        "GED0",
        aml.name("_HID", aml.string("ACPI0013")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_CRS", aml.resources(_interrupt(platform.GED_GSI, InterruptFlag.CONSUMER))),
        aml.io_region("PWRP", platform.POWER_EVENT_PORT, 1),
        aml.byte_field("PWRP", "PWRE"),
        aml.method("_EVT", 1, aml.if_(event, aml.notify("\\_SB.PWRB", NOTIFY_BUTTON_PRESSED))),
    )


def _ports(first: int, count: int) -> IoPorts:
    return IoPorts(minimum=first, maximum=first, length=count)


def _interrupt(gsi: int, flags: InterruptFlag) -> ExtendedInterrupt:
    return ExtendedInterrupt(flags=flags, gsi=gsi)
