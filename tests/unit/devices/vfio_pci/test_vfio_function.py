"""BARs, resets and the end of a passed-on device."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest

from minivmm.errors import HostError
from minivmm.spec import pci
from minivmm.testing.fake_vfio_device import FakePciDevice
from minivmm.testing.vfio_bench import MEMORY_AND_MASTER, MSIX_AT, VfioBench, a_device
from minivmm.vfio.abi import Irq

CONFIG = 7
MakeBench = Callable[..., VfioBench]


def windows(bench: VfioBench, index: int = 0) -> list[tuple[int, int]]:
    """(offset in the BAR, size) of what the guest reaches directly."""
    base = bench.bar(index)
    size = next(bar.size for bar in bench.function.bars if bar.index == index)
    return sorted((at - base, n) for at, n in bench.windows.shown if base <= at < base + size)


def test_all_but_the_table_and_its_pending_bits_is_direct(bench: VfioBench) -> None:
    assert windows(bench) == [(0, 0x2000), (0x4000, 0x4000)]
    assert windows(bench, 3) == [(0, 0x1000)]


@pytest.mark.parametrize(
    ("table", "pending", "direct"),
    [
        (0, 0x800, [(0x1000, 0x7000)]),  # both in the first page
        (0x1000, 0x1800, [(0, 0x1000), (0x2000, 0x6000)]),
        (0x7000, 0, [(0x1000, 0x6000)]),  # at both ends
        (0x4003, 0x5003, [(0, 0x8000)]),  # in BAR 3
    ],
)
def test_pages_with_something_of_ours_are_trapped(
    make_bench: MakeBench, table: int, pending: int, direct: list[tuple[int, int]]
) -> None:
    device = a_device(table=table, pending=pending)
    device.bars[3] = 0x8000

    assert windows(make_bench(device)) == direct


def test_device_says_itself_what_may_be_mapped(make_bench: MakeBench) -> None:
    device = a_device()
    device.sparse[0] = [(0x1000, 0x2000), (0x6800, 0x1800)]  # the table is in the first

    assert windows(make_bench(device)) == [(0x1000, 0x1000), (0x7000, 0x1000)]


def test_window_shows_the_devices_memory(bench: VfioBench) -> None:
    bench.device.poke(0, 0x5000, 4, 0x1234_5678)
    hva = bench.windows.shown[bench.bar(0) + 0x4000, 0x4000]

    assert ctypes.c_uint32.from_address(hva + 0x1000).value == 0x1234_5678


def test_accesses_outside_of_windows_reach_the_device(bench: VfioBench) -> None:
    bench.mmio.write(bench.bar(0) + 0x2800, 8, 0x1122_3344_5566_7788)

    assert bench.device.peek(0, 0x2800, 8) == 0x1122_3344_5566_7788
    assert bench.mmio.read(bench.bar(0) + 0x2804, 2) == 0x3344


def test_windows_follow_the_bar(bench: VfioBench) -> None:
    before = bench.bar(3)
    bench.driver.write_pci(pci.BAR0 + 12, 4, before + 0x10_0000)

    assert bench.bar(3) == before + 0x10_0000
    assert windows(bench, 3) == [(0, 0x1000)]
    assert not any(at == before for at, _ in bench.windows.shown)


def test_bar_outside_of_pci_memory_has_no_windows(bench: VfioBench) -> None:
    """A guest that puts a BAR over its RAM gets nothing."""
    before = len(bench.windows.shown)
    bench.driver.write_pci(pci.BAR0 + 12, 4, 0x10_0000)

    assert len(bench.windows.shown) == before - 1
    assert bench.bar(3) == 0


def test_reset_stops_dma_first_and_is_complete(bench: VfioBench) -> None:
    bench.driver.write_pci(MSIX_AT + 2, 2, pci.MsixControl.ENABLE)
    bench.mmio.write(bench.bar(0) + 0x2000 + 12, 4, 0)
    masters: list[int] = []
    bench.device.resets = Recorder(  # type: ignore[assignment]
        lambda: masters.append(bench.device.peek(CONFIG, pci.COMMAND, 2))
    )

    bench.function.reset()

    assert masters == [0]
    assert not bench.windows.shown
    assert bench.device.kinds & {Irq.INTX, Irq.MSI, Irq.MSIX} == {Irq.INTX}
    bench.pci.assign_bars()
    bench.driver.write_pci(pci.COMMAND, 2, MEMORY_AND_MASTER)
    assert bench.mmio.read(bench.bar(0) + 0x2000 + 12, 4) == pci.MSIX_ENTRY_MASKED
    assert windows(bench)


class Recorder(list[str]):
    """Calls back when something is appended."""

    def __init__(self, heard: Callable[[], None]) -> None:
        super().__init__()
        self._heard = heard

    def append(self, item: str) -> None:
        """Call back first."""
        self._heard()
        super().append(item)


@pytest.mark.parametrize(
    ("alone", "bus", "resets"), [(True, True, "function"), (False, True, "bus")]
)
def test_reset_alone_if_it_can_else_with_its_bus(
    make_bench: MakeBench, alone: bool, bus: bool, resets: str
) -> None:
    device = a_device()
    device.can_reset, device.can_reset_bus = alone, bus
    bench = make_bench(device)

    bench.function.reset()

    assert device.resets == [resets]
    assert not bench.warnings


def test_device_that_cannot_be_reset_is_told_of(make_bench: MakeBench) -> None:
    device = a_device()
    device.can_reset = False
    bench = make_bench(device)

    bench.function.reset()

    (line,) = bench.warnings
    assert line.startswith("vfio0 (0000:01:00.0): the host cannot reset it alone")


def test_device_that_the_host_wants_back_is_gone_for_the_guest(bench: VfioBench) -> None:
    bench.driver.write_pci(MSIX_AT + 2, 2, pci.MsixControl.ENABLE)
    request = next(fd for (kind, _), fd in bench.device.triggers.items() if kind == Irq.REQUEST)

    bench.heard[request]()
    bench.heard[request]()

    assert not bench.windows.shown
    assert bench.driver.read_pci(0, 4) == 0xFFFF_FFFF
    bench.driver.write_pci(pci.COMMAND, 2, MEMORY_AND_MASTER)
    assert not bench.windows.shown
    assert all(bar.mapped is None for bar in bench.function.bars)
    assert bench.opened.devices[0].fd == -1
    assert "the host takes it away" in bench.warnings[0]
    bench.function.reset()  # the machine may go on
    bench.function.quiet()
    assert bench.function.inspect()["gone"] is True


def test_guest_cannot_make_us_say_too_much(bench: VfioBench) -> None:
    for number in range(30):
        bench.function._complain("the same")
        bench.function._complain(f"line {number}")

    assert len(bench.warnings) == len(set(bench.warnings)) == 20
    assert len([one for one in bench.trace.recent() if one.name == "trouble"]) == 60


def test_error_of_the_device_is_told_of(bench: VfioBench) -> None:
    bench.heard[bench.device.triggers[Irq.ERROR, 0]]()

    assert "cannot correct" in bench.warnings[0]


def test_bar_of_an_odd_size_is_refused(make_bench: MakeBench) -> None:
    device: FakePciDevice = a_device()
    device.bars[3] = 0x3000

    with pytest.raises(HostError, match=r"vfio0: 0000:01:00\.0: BAR 3 has 12288 bytes"):
        make_bench(device)


def test_inspect_tells_how_it_is_passed_on(bench: VfioBench) -> None:
    told = bench.function.inspect()

    assert told["host"] == "0000:01:00.0"
    assert told["interrupts"] == "intx"
    assert told["mapped"] == {0: 0x6000, 3: 0x1000}
