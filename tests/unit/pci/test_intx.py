"""Pins and shared lines: what the I/O APIC hears of functions that interrupt by INTA#."""

from __future__ import annotations

import pytest

from minivmm.bus import Bus
from minivmm.pci.function import PciFunction
from minivmm.pci.host import PciHost
from minivmm.pci.intx import Pin, SharedLine
from minivmm.spec import pci
from minivmm.testing.driver import bench_map
from minivmm.testing.fake_irq import FakeInterruptController, FakeLine


class Board:
    """A PCI host with a function in each of `slots`."""

    def __init__(self, *slots: int) -> None:
        self.irq = FakeInterruptController()
        self.host = PciHost(Bus("mmio"), Bus("pio"), bench_map(), self.irq)
        self.functions = {slot: PciFunction(pci.Header()) for slot in slots}
        for slot, function in self.functions.items():
            self.host.add(function, slot)

    def asserted(self) -> list[int]:
        return sorted(gsi for gsi, line in self.irq.lines.items() if line.level)


def test_a_shared_line_is_asserted_while_any_pin_is() -> None:
    line = FakeLine()
    shared = SharedLine(line)
    first, second = Pin(shared), Pin(shared)

    first.set(True)
    second.set(True)
    first.set(False)
    assert line.level
    second.set(False)

    assert line.levels == [True, False]


def test_a_pin_counts_once_however_often_it_is_set() -> None:
    line = FakeLine()
    pin = Pin(SharedLine(line))

    pin.set(False)
    pin.set(True)
    pin.set(True)
    pin.set(False)

    assert line.levels == [True, False]


@pytest.mark.parametrize(("slot", "gsi"), [(1, 17), (7, 23), (8, 16), (31, 23)])
def test_a_slot_drives_the_line_that_prt_tells(slot: int, gsi: int) -> None:
    board = Board(slot)
    board.functions[slot].set_interrupt_status(True)
    assert board.asserted() == [gsi]


def test_slots_eight_apart_share_a_line() -> None:
    board = Board(1, 9)

    board.functions[1].set_interrupt_status(True)
    board.functions[9].set_interrupt_status(True)
    board.functions[1].set_interrupt_status(False)
    assert board.asserted() == [17]
    board.functions[9].set_interrupt_status(False)

    assert board.irq.lines[17].levels == [True, False]


@pytest.mark.rule("PCI-D-1")
def test_interrupt_disable_releases_the_pin_and_keeps_the_status() -> None:
    """PCI 6.2.2 bit 10 and 6.2.3 bit 3."""
    board = Board(3)
    function = board.functions[3]
    function.set_interrupt_status(True)

    function.config.write(pci.COMMAND, 2, pci.Command.INTX_DISABLE)
    assert board.asserted() == []
    assert function.config.read(pci.STATUS, 2) & pci.Status.INTERRUPT
    function.config.write(pci.COMMAND, 2, 0)

    assert board.asserted() == [19]


def test_a_reset_releases_the_pin() -> None:
    board = Board(3)
    board.functions[3].set_interrupt_status(True)
    board.host.reset()
    assert board.irq.lines[19].levels == [True, False]


def test_a_function_without_a_host_has_nothing_to_drive() -> None:
    function = PciFunction(pci.Header())
    function.set_interrupt_status(True)
    assert function.config.read(pci.STATUS, 2) & pci.Status.INTERRUPT


# -- function level reset --------------------------------------------------------------------------


def offered_reset(function: PciFunction) -> int:
    """Offset of the Advanced Features capability, by the chain; 0 if there is none."""
    at = function.config.read(pci.CAPABILITIES, 1)
    while at and function.config.read(at, 1) != 0x13:
        at = function.config.read(at + 1, 1)
    return at


def test_reset_is_offered_as_linux_looks_for_it() -> None:
    """Length 6, transactions-pending and reset bits, no transaction pending (pci_af_flr)."""
    function = PciFunction(pci.Header())
    assert offered_reset(function) == 0
    function.offer_reset()
    at = offered_reset(function)
    assert [function.config.read(at + field, 1) for field in (2, 3, 4, 5)] == [6, 3, 0, 0]


@pytest.mark.rule("PCI-D-1")
def test_function_reset_makes_configuration_space_as_after_power_on() -> None:
    board = Board(3)
    function = board.functions[3]
    function.offer_reset()
    function.config.write(pci.COMMAND, 2, pci.Command.BUS_MASTER | pci.Command.MEMORY_SPACE)
    function.config.write(pci.INTERRUPT_LINE, 1, 11)
    function.set_interrupt_status(True)

    control = offered_reset(function) + 4
    function.config.write(control, 1, 1)

    assert function.config.read(control, 1) == 0
    assert function.config.read(pci.COMMAND, 2) == 0
    assert function.config.read(pci.INTERRUPT_LINE, 1) == 0
    assert not function.config.read(pci.STATUS, 2) & pci.Status.INTERRUPT
    assert board.asserted() == []
    assert offered_reset(function) + 4 == control


@pytest.mark.parametrize("value", [0, 0xFE])
def test_only_bit_0_resets_a_function(value: int) -> None:
    function = PciFunction(pci.Header())
    function.offer_reset()
    function.config.write(pci.COMMAND, 2, pci.Command.BUS_MASTER)
    function.config.write(offered_reset(function) + 4, 1, value)
    assert function.bus_master
