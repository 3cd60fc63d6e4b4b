"""MSI-X: both masks, pending bits, messages and when routes change (reference B.8)."""

import pytest

from minivmm.pci.function import PciFunction
from minivmm.pci.msix import Msix
from minivmm.spec import pci
from minivmm.testing.fake_irq import FakeInterruptController

ENABLE = pci.MsixControl.ENABLE
FUNCTION_MASK = pci.MsixControl.FUNCTION_MASK


class Arrangement:
    """A bus-mastering function with four vectors; vector n sends n."""

    def __init__(self) -> None:
        self.irq = FakeInterruptController()
        self.function = PciFunction(pci.Header())
        self.msix = Msix(self.function, 4, self.irq, bar_index=2)
        self.function.config.write(pci.COMMAND, 2, pci.Command.BUS_MASTER)
        self.capability = self.function.config.read(pci.CAPABILITIES, 1)
        for vector in range(4):
            self.set_entry(vector, data=vector)
        self.control(ENABLE)

    def control(self, value: int) -> None:
        self.function.config.write(self.capability + 2, 2, value)

    def set_entry(self, vector: int, *, data: int, masked: bool = False) -> None:
        for offset, word in enumerate((0xFEE00000, 0, data, int(masked))):
            self.msix.write(16 * vector + 4 * offset, 4, word)

    def pending(self) -> int:
        table_and_bar = self.function.config.read(self.capability + 8, 4)
        return self.msix.read(table_and_bar & ~7, 4)


def test_capability_tells_table_size_and_bar() -> None:
    made = Arrangement()
    config = made.function.config
    assert config.read(made.capability, 1) == pci.CapabilityId.MSIX
    assert config.read(made.capability + 2, 2) & 0x7FF == 3
    assert config.read(made.capability + 4, 4) & 7 == 2
    assert config.read(made.capability + 8, 4) & 7 == 2


@pytest.mark.rule("PCI-D-1")
def test_table_size_field_is_read_only() -> None:
    made = Arrangement()
    made.control(0x7FF | ENABLE)
    assert made.function.config.read(made.capability + 2, 2) == 3 | ENABLE


def test_entries_are_masked_after_reset() -> None:
    made = Arrangement()
    made.msix.reset()
    assert [made.msix.read(16 * v + 12, 4) for v in range(4)] == [1, 1, 1, 1]


def test_unmasked_vector_sends_its_message() -> None:
    made = Arrangement()
    made.msix.deliver(2)
    assert made.irq.messages == [(0xFEE00000, 2)]
    assert made.pending() == 0


def test_64_bit_message_address_is_kept_whole() -> None:
    made = Arrangement()
    made.msix.write(16, 8, 0x12_3456_0000_FEE0_1000 & (1 << 64) - 1)
    made.msix.deliver(1)
    assert made.irq.messages[0][0] == 0x12_3456_0000_FEE0_1000 & (1 << 64) - 1


@pytest.mark.rule("PCI-D-1")
def test_masked_entry_is_pending_and_sent_once_when_unmasked() -> None:
    made = Arrangement()
    made.set_entry(1, data=1, masked=True)
    made.msix.deliver(1)
    made.msix.deliver(1)
    assert (made.irq.take(), made.pending()) == ([], 0b10)
    made.set_entry(1, data=1)
    assert (made.irq.take(), made.pending()) == ([1], 0)
    made.set_entry(1, data=1)
    assert made.irq.take() == []


@pytest.mark.rule("PCI-D-1")
def test_function_mask_holds_everything_back_until_it_is_cleared() -> None:
    made = Arrangement()
    made.control(ENABLE | FUNCTION_MASK)
    made.msix.deliver(0)
    made.msix.deliver(3)
    assert (made.irq.take(), made.pending()) == ([], 0b1001)
    made.control(ENABLE)
    assert made.irq.take() == [0, 3]


def test_clearing_the_function_mask_does_not_pass_a_masked_entry() -> None:
    made = Arrangement()
    made.control(ENABLE | FUNCTION_MASK)
    made.set_entry(0, data=0, masked=True)
    made.msix.deliver(0)
    made.control(ENABLE)
    assert (made.irq.take(), made.pending()) == ([], 1)


def test_messages_wait_while_bus_mastering_is_off() -> None:
    made = Arrangement()
    made.function.config.write(pci.COMMAND, 2, 0)
    made.msix.deliver(1)
    assert made.irq.take() == []
    made.function.config.write(pci.COMMAND, 2, pci.Command.BUS_MASTER)
    made.msix.flush()
    assert made.irq.take() == [1]


def test_unknown_vectors_are_ignored() -> None:
    made = Arrangement()
    made.msix.deliver(4)
    made.msix.deliver(0xFFFF)
    assert (made.irq.take(), made.pending()) == ([], 0)


def test_route_is_updated_only_when_the_message_changed() -> None:
    made = Arrangement()
    made.msix.deliver(1)
    made.msix.deliver(1)
    made.set_entry(1, data=1, masked=True)
    made.set_entry(1, data=1)
    made.msix.deliver(1)
    assert [route.routes for route in made.irq.routes] == [[(0xFEE00000, 1)]]
    made.set_entry(1, data=7)
    made.msix.deliver(1)
    assert made.irq.routes[0].routes == [(0xFEE00000, 1), (0xFEE00000, 7)]


def test_a_message_that_moved_while_it_was_due_goes_to_its_new_target_only() -> None:
    """As Linux changes an affinity: mask, write address and data, unmask."""
    made = Arrangement()
    made.msix.deliver(1)
    made.irq.take()
    made.set_entry(1, data=1, masked=True)
    made.msix.deliver(1)
    for offset, word in enumerate((0xFEE01000, 0, 0x52)):
        made.msix.write(16 + 4 * offset, 4, word)
    assert made.irq.messages == []
    made.msix.write(16 + 12, 4, 0)
    assert made.irq.messages == [(0xFEE01000, 0x52)]
    made.msix.deliver(1)
    assert made.irq.messages == [(0xFEE01000, 0x52)] * 2


def test_an_entry_may_be_rewritten_in_two_wide_writes() -> None:
    made = Arrangement()
    made.msix.write(32, 8, 0xFEE02000)
    made.msix.write(40, 8, 0x61)
    assert made.msix.read(32, 8) == 0xFEE02000
    assert made.msix.read(40, 8) == 0x61
    made.msix.deliver(2)
    assert made.irq.messages == [(0xFEE02000, 0x61)]


def test_the_last_vector_of_the_largest_table_has_its_pending_bit() -> None:
    irq = FakeInterruptController()
    function = PciFunction(pci.Header())
    msix = Msix(function, 128, irq, bar_index=2)
    msix.deliver(127)
    pba = function.config.read(function.config.read(pci.CAPABILITIES, 1) + 8, 4) & ~7
    assert [msix.read(pba + at, 4) for at in (0, 4, 8, 12)] == [0, 0, 0, 1 << 31]
    assert msix.read(pba + 8, 8) == 1 << 63
    assert pba + 16 <= 4096


def test_messages_due_while_msix_is_off_wait_for_it() -> None:
    made = Arrangement()
    made.control(0)
    made.msix.deliver(3)
    assert (made.irq.take(), made.pending()) == ([], 0b1000)
    made.control(ENABLE)
    assert made.irq.take() == [3]


def test_pending_bits_are_read_only() -> None:
    made = Arrangement()
    made.set_entry(0, data=0, masked=True)
    made.msix.deliver(0)
    pba = made.function.config.read(made.capability + 8, 4) & ~7
    made.msix.write(pba, 4, 0)
    assert made.pending() == 1


@pytest.mark.parametrize("size", [1, 2])
def test_narrow_accesses_do_nothing(size: int) -> None:
    made = Arrangement()
    made.msix.write(8, size, 0xFF)
    assert made.msix.read(8, size) == 0
    made.msix.deliver(0)
    assert made.irq.take() == [0]


@pytest.mark.parametrize("vectors", [0, 129])
def test_impossible_numbers_of_vectors_are_refused(vectors: int) -> None:
    with pytest.raises(ValueError, match="vectors"):
        Msix(PciFunction(pci.Header()), vectors, FakeInterruptController(), bar_index=2)
