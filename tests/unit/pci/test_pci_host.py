"""The PCI host: ECAM, CF8/CFC, BAR sizing, moving and placement."""

from collections.abc import Iterator

import pytest

from minivmm.bus import Bus
from minivmm.pci.function import Bar, PciFunction
from minivmm.pci.host import PciHost
from minivmm.registers import Register, RegisterFile, constant
from minivmm.spec import pci
from minivmm.spec.platform import ECAM_BASE
from minivmm.testing.driver import bench_map
from minivmm.testing.fake_irq import FakeInterruptController

MEMORY = pci.Command.MEMORY_SPACE


class Probe(PciFunction):
    """A 64-bit BAR of 16 KiB that reads 0xABCD and a 32-bit BAR of 4 KiB that reads 0x1234."""

    def __init__(self, name: str = "probe") -> None:
        super().__init__(pci.Header(vendor_id=0x1111, device_id=0x2222))
        self.name = name
        self.moves: list[tuple[int, int | None]] = []
        for index, size, value, wide in ((0, 0x4000, 0xABCD, True), (2, 0x1000, 0x1234, False)):
            device = RegisterFile([Register(0, 4, "id", constant(value))])
            self.add_bar(index, size, device, name=f"bar{index}", wide=wide, prefetchable=wide)

    def on_bar_moved(self, bar: Bar) -> None:
        self.moves.append((bar.index, bar.mapped))


class Platform:
    def __init__(self) -> None:
        self.mmio, self.pio = Bus("mmio"), Bus("pio")
        self.map = bench_map()
        self.irq = FakeInterruptController()
        self.host = PciHost(self.mmio, self.pio, self.map, self.irq)
        self.probe = Probe()
        self.host.add(self.probe)
        self.host.assign_bars()

    def ecam(self, offset: int, *, slot: int = 1) -> int:
        return ECAM_BASE + (slot << 15) + offset

    def read(self, offset: int, size: int, *, slot: int = 1) -> int:
        return self.mmio.read(self.ecam(offset, slot=slot), size)

    def write(self, offset: int, size: int, value: int, *, slot: int = 1) -> None:
        self.mmio.write(self.ecam(offset, slot=slot), size, value)


@pytest.fixture
def board() -> Iterator[Platform]:
    yield Platform()


def test_host_bridge_is_at_slot_0(board: Platform) -> None:
    assert board.read(8, 4, slot=0) >> 8 == pci.ClassCode.HOST_BRIDGE
    assert board.read(0, 2, slot=0) not in (0, 0xFFFF)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_absent_functions_read_all_ones_and_ignore_writes(board: Platform, size: int) -> None:
    board.write(0, size, 0, slot=5)
    assert board.read(0, size, slot=5) == (1 << 8 * size) - 1


def test_only_function_0_of_a_slot_answers(board: Platform) -> None:
    assert board.mmio.read(ECAM_BASE + (1 << 15) + (1 << 12), 4) == 0xFFFFFFFF


def test_nothing_is_behind_the_256_bytes_of_a_function(board: Platform) -> None:
    assert board.read(0x100, 4) == board.read(0x100, 4, slot=0) == 0xFFFFFFFF
    board.write(0x100, 4, 0)
    assert board.read(0xFC, 4) == 0


@pytest.mark.parametrize(("offset", "size"), [(1, 2), (2, 4), (3, 2), (0, 8)])
def test_ecam_refuses_unaligned_and_wide_accesses(board: Platform, offset: int, size: int) -> None:
    assert board.read(offset, size) == (1 << 8 * size) - 1


@pytest.mark.rule("PCI-D-1")
def test_ports_and_ecam_show_the_same_registers(board: Platform) -> None:
    board.pio.write(0xCF8, 4, 0x80000000 | 1 << 11)
    assert board.pio.read(0xCFC, 4) == board.read(0, 4) == 0x22221111
    assert board.pio.read(0xCFE, 2) == 0x2222
    assert board.pio.read(0xCFD, 1) == 0x11


@pytest.mark.rule("PCI-D-1")
def test_port_writes_reach_the_register_named_by_the_address(board: Platform) -> None:
    board.pio.write(0xCF8, 4, 0x80000000 | 1 << 11 | pci.COMMAND)
    board.pio.write(0xCFC, 2, pci.Command.BUS_MASTER)
    assert board.read(pci.COMMAND, 2) == pci.Command.BUS_MASTER


def test_linux_check_for_mechanism_1_succeeds(board: Platform) -> None:
    board.pio.write(0xCFB, 1, 1)
    board.pio.write(0xCF8, 4, 0x80000000)
    assert board.pio.read(0xCF8, 4) == 0x80000000


def test_data_port_without_enable_bit_is_nothing(board: Platform) -> None:
    board.pio.write(0xCF8, 4, 1 << 11)
    assert board.pio.read(0xCFC, 4) == 0xFFFFFFFF


def test_reserved_address_bits_read_zero(board: Platform) -> None:
    board.pio.write(0xCF8, 4, 0xFFFFFFFF)
    assert board.pio.read(0xCF8, 4) == 0x80FFFFFC


def test_bars_start_inside_their_windows_aligned_and_apart(board: Platform) -> None:
    second = Probe("second")
    board.host.add(second)
    board.host.assign_bars()
    spans = []
    for function in (board.probe, second):
        for bar in function.bars:
            base = function.config.get(bar.offset, bar.width) & ~0xF
            window = board.map.mmio64 if bar.wide else board.map.mmio32
            assert window.base <= base and base + bar.size <= window.end
            assert base % bar.size == 0
            spans.append((base, base + bar.size))
    spans.sort()
    assert all(spans[i][1] <= spans[i + 1][0] for i in range(len(spans) - 1))


@pytest.mark.rule("PCI-D-1")
def test_bars_are_decoded_only_while_memory_space_is_on(board: Platform) -> None:
    base = board.map.mmio32.base
    assert board.mmio.read(base, 4) == 0xFFFFFFFF
    board.write(pci.COMMAND, 2, MEMORY)
    assert board.mmio.read(base, 4) == 0x1234
    board.write(pci.COMMAND, 2, 0)
    assert board.mmio.read(base, 4) == 0xFFFFFFFF
    assert board.probe.moves[-2:] == [(0, None), (2, None)]


@pytest.mark.rule("PCI-D-1")
def test_bar_sizing_32_bit(board: Platform) -> None:
    old = board.read(0x18, 4)
    board.write(0x18, 4, 0xFFFFFFFF)
    assert board.read(0x18, 4) == 0xFFFFF000
    board.write(0x18, 4, old)
    assert board.read(0x18, 4) == old


@pytest.mark.rule("PCI-D-1")
def test_bar_sizing_64_bit(board: Platform) -> None:
    board.write(0x10, 4, 0xFFFFFFFF)
    board.write(0x14, 4, 0xFFFFFFFF)
    assert board.read(0x10, 4) == 0xFFFFC00C
    assert board.read(0x14, 4) == 0xFFFFFFFF


@pytest.mark.rule("PCI-D-1")
def test_absent_bars_size_as_zero(board: Platform) -> None:
    for offset in (0x1C, 0x20, 0x24, 0x30):
        board.write(offset, 4, 0xFFFFFFFF)
        assert board.read(offset, 4) == 0


@pytest.mark.rule("PCI-D-1")
def test_64_bit_bar_moves_half_by_half(board: Platform) -> None:
    board.write(pci.COMMAND, 2, MEMORY)
    target = board.map.mmio64.base + 0x1_0000_8000
    board.write(0x10, 4, target & 0xFFFFFFFF)
    board.write(0x14, 4, target >> 32)
    assert board.mmio.read(target, 4) == 0xABCD
    assert board.mmio.read(board.map.mmio64.base, 4) == 0xFFFFFFFF
    assert board.probe.bars[0].mapped == target


def test_64_bit_bar_may_live_below_4_gib(board: Platform) -> None:
    board.write(pci.COMMAND, 2, MEMORY)
    target = board.map.mmio32.base + 0x100000
    board.write(0x14, 4, 0)
    board.write(0x10, 4, target)
    assert board.mmio.read(target, 4) == 0xABCD


@pytest.mark.parametrize("target", [0, 0x1000, ECAM_BASE, 0xFEE00000, 0xFFFFF000])
def test_bar_outside_the_windows_is_not_decoded(board: Platform, target: int) -> None:
    board.write(pci.COMMAND, 2, MEMORY)
    board.write(0x18, 4, target)
    assert board.probe.bars[1].mapped is None
    assert board.read(0, 4) == 0x22221111


def test_colliding_bars_the_second_waits_and_then_appears(board: Platform) -> None:
    second = Probe("second")
    board.host.add(second)
    board.host.assign_bars()
    board.write(pci.COMMAND, 2, MEMORY)
    board.write(pci.COMMAND, 2, MEMORY, slot=2)
    contested = board.read(0x18, 4)
    board.write(0x18, 4, contested, slot=2)
    assert second.bars[1].mapped is None
    board.write(0x18, 4, contested + 0x100000)
    assert board.probe.bars[1].mapped == contested + 0x100000
    assert second.bars[1].mapped == contested


def test_reset_switches_decoding_off_and_reassignment_restores_it(board: Platform) -> None:
    board.write(pci.COMMAND, 2, MEMORY)
    board.write(0x18, 4, board.map.mmio32.base + 0x200000)
    board.host.reset()
    assert board.read(pci.COMMAND, 2) == 0
    assert [bar.mapped for bar in board.probe.bars] == [None, None]
    board.host.assign_bars()
    assert board.read(0x18, 4) == board.map.mmio32.base


def test_slots_can_be_chosen_but_not_twice(board: Platform) -> None:
    board.host.add(Probe("seven"), 7)
    assert board.read(0, 4, slot=7) == 0x22221111
    with pytest.raises(ValueError, match="not free"):
        board.host.add(Probe("again"), 7)


def test_a_full_bus_refuses_more(board: Platform) -> None:
    with pytest.raises(ValueError, match="not free"):
        for _ in range(pci.SLOTS):
            board.host.add(Probe())


@pytest.mark.parametrize(
    ("index", "size", "wide"), [(0, 0x1000, False), (5, 0x1000, True), (4, 0x1800, False)]
)
def test_impossible_bars_are_refused(index: int, size: int, wide: bool) -> None:
    function = Probe()
    with pytest.raises(ValueError, match="not possible"):
        function.add_bar(index, size, RegisterFile([]), name="bad", wide=wide)


def test_inspect_names_every_function(board: Platform) -> None:
    tree = board.host.inspect()
    assert list(tree) == ["0000:00:00.0", "0000:00:01.0"]
