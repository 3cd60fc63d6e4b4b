"""Saved state of PCI: who is decoded where BARs overlap, the host's latch, what is alien."""

from __future__ import annotations

import pytest

from minivmm.bus import Bus
from minivmm.errors import BadState
from minivmm.pci.function import PciFunction
from minivmm.pci.host import PciHost
from minivmm.spec import pci, platform
from minivmm.testing.driver import bench_map
from minivmm.testing.fake_irq import FakeInterruptController

HEADER = pci.Header(vendor_id=0x1234, device_id=1, interrupt_pin=pci.INTA)


class Probe:
    """A BAR's device that answers with its number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def read(self, offset: int, size: int) -> int:
        return self.number

    def write(self, offset: int, size: int, value: int) -> None: ...


class Board:
    """Three functions with a BAR of 4 KiB each."""

    def __init__(self) -> None:
        self.mmio, self.pio = Bus("mmio"), Bus("pio")
        self.irq = FakeInterruptController()
        self.host = PciHost(self.mmio, self.pio, bench_map(), self.irq)
        self.probes = [PciFunction(HEADER) for _ in range(3)]
        for number, function in enumerate(self.probes):
            function.name = f"probe{number}"
            function.add_bar(0, 4096, Probe(number), name="bar")
            self.host.add(function)
        self.host.assign_bars()

    def write(self, number: int, offset: int, size: int, value: int) -> None:
        self.probes[number].config.write(offset, size, value)

    def place(self, number: int, address: int) -> None:
        self.write(number, pci.BAR0, 4, address)

    def on(self, number: int) -> None:
        self.write(number, pci.COMMAND, 2, pci.Command.MEMORY_SPACE | pci.Command.BUS_MASTER)

    def reach(self, address: int) -> int:
        return self.mmio.read(address, 4)

    def saved(self) -> list[bytes]:
        return [function.save_state() for function in self.host.functions]

    def load(self, saved: list[bytes]) -> None:
        for function, data in zip(self.host.functions, saved, strict=True):
            function.load_state(data)
        assert self.saved() == saved


HERE = platform.MMIO32_BASE + 0x10_0000


def test_the_bar_that_was_there_first_is_still_the_one_that_answers() -> None:
    """Which of two BARs at one place is decoded is history, not to be seen in any register."""
    old, new = Board(), Board()
    for number in (2, 0):
        old.place(number, HERE)
        old.on(number)
    assert old.reach(HERE) == 2

    new.load(old.saved())

    assert new.reach(HERE) == 2
    new.place(2, HERE + 0x1000)
    assert [new.reach(HERE), new.reach(HERE + 0x1000)] == [0, 2]


def test_moved_bars_are_loaded_over_others_in_any_order() -> None:
    """Loaded twice: the second state has other BARs where the first had them."""
    first, second, new = Board(), Board(), Board()
    for number in range(3):
        first.place(number, HERE + 0x1000 * number)
        first.on(number)
        second.place(number, HERE + 0x1000 * (2 - number))
        second.on(number)
    new.load(first.saved())

    new.load(second.saved())

    assert [new.reach(HERE + 0x1000 * place) for place in range(3)] == [2, 1, 0]


def test_bar_outside_of_the_windows_is_decoded_nowhere() -> None:
    old, new = Board(), Board()
    old.on(0)
    old.place(0, 0x1000)

    new.load(old.saved())

    assert new.probes[0].bars[0].mapped is None
    assert new.probes[0].bus_master


def test_latch_of_the_ports_is_saved() -> None:
    old, new = Board(), Board()
    old.pio.write(platform.PCI_CONFIG_PORT, 4, 0x8000_0800)
    data = old.host.save_state()

    new.host.load_state(data)

    assert new.pio.read(platform.PCI_CONFIG_PORT + 4, 4) == 0x1_1234
    assert new.host.save_state() == data


def test_latch_with_reserved_bits_is_refused() -> None:
    with pytest.raises(BadState, match="config address 0xffffffff"):
        Board().host.load_state(b"\xff" * 4)


@pytest.mark.parametrize("at", [0, 2, 8, 0x10, 0x34, 0x3D, 0x80])
def test_configuration_that_no_guest_can_write_is_refused(at: int) -> None:
    board = Board()
    data = bytearray(board.probes[0].save_state())
    data[at] ^= 1

    with pytest.raises(BadState, match=f"configuration byte {at:#04x}"):
        board.probes[0].load_state(bytes(data))


def test_interrupt_status_is_not_taken_from_configuration_space() -> None:
    """It is the device's: a function without one has nothing to tell."""
    board = Board()
    board.probes[0].set_interrupt_status(True)
    data = board.probes[0].save_state()

    assert not data[pci.STATUS] & pci.Status.INTERRUPT
    assert board.irq.line(platform.pci_gsi(board.probes[0].slot)).level
