"""Interrupts of a passed-on device: pin, MSI and MSI-X between VFIO's eventfds and the guest's."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from minivmm.spec import pci
from minivmm.spec.platform import pci_gsi
from minivmm.testing.vfio_bench import MSI_AT, MSIX_AT, VECTORS, VfioBench, a_device
from minivmm.vfio.abi import Irq

MakeBench = Callable[..., VfioBench]
TABLE, PENDING = 0x2000, 0x3000
CONTROL = MSIX_AT + 2
ENABLE, MASK_ALL = pci.MsixControl.ENABLE, pci.MsixControl.FUNCTION_MASK
ADDRESS = 0xFEE0_0000


def program(bench: VfioBench, vector: int, data: int, *, masked: bool = False) -> None:
    """Write an entry of the MSI-X table, as drivers do."""
    at = bench.bar(0) + TABLE + 16 * vector
    for offset, value in ((0, ADDRESS), (4, 0), (8, data), (12, int(masked))):
        bench.mmio.write(at + offset, 4, value)


def set_mask(bench: VfioBench, vector: int, masked: bool) -> None:
    bench.mmio.write(bench.bar(0) + TABLE + 16 * vector + 12, 4, int(masked))


def enable_msix(bench: VfioBench, control: int = ENABLE) -> None:
    bench.driver.write_pci(CONTROL, 2, control)


def pending(bench: VfioBench) -> int:
    return bench.mmio.read(bench.bar(0) + PENDING, 8)


def test_pin_is_used_until_something_else_is(bench: VfioBench) -> None:
    (wire,) = bench.irq.wires

    assert wire.gsi == pci_gsi(bench.function.slot)
    assert wire.connected
    assert bench.device.triggers[Irq.INTX, 0] == wire.trigger
    assert bench.device.unmask == wire.served


def test_device_without_a_pin_has_none(make_bench: MakeBench) -> None:
    device = a_device()
    del device.irqs[Irq.INTX]
    bench = make_bench(device)

    assert bench.driver.read_pci(pci.INTERRUPT_PIN, 1) == 0
    assert not bench.irq.wires
    assert Irq.INTX not in bench.device.kinds


def test_msix_takes_the_place_of_the_pin(bench: VfioBench) -> None:
    enable_msix(bench)

    assert Irq.INTX not in bench.device.kinds
    assert not bench.irq.wires[0].connected

    enable_msix(bench, 0)

    assert Irq.MSIX not in bench.device.kinds
    assert bench.irq.wires[0].connected


@pytest.mark.parametrize("resizable", [False, True])
def test_vectors_come_as_they_are_unmasked(make_bench: MakeBench, resizable: bool) -> None:
    device = a_device()
    device.resizable = resizable
    bench = make_bench(device)
    enable_msix(bench, ENABLE | MASK_ALL)
    for vector in range(VECTORS):
        program(bench, vector, 0x40 + vector, masked=vector > 2)
    none = [fd for (kind, _), fd in device.triggers.items() if kind == Irq.MSIX and fd >= 0]
    enable_msix(bench)

    assert none == []
    bench.device.interrupt(Irq.MSIX, 2)
    assert bench.irq.take() == [0x42]
    set_mask(bench, 7, False)
    bench.device.interrupt(Irq.MSIX, 7)
    assert bench.irq.take() == [0x47]


def test_masked_vector_is_pending_and_comes_once_unmasked(bench: VfioBench) -> None:
    enable_msix(bench)
    program(bench, 3, 0x33)
    set_mask(bench, 3, True)
    bench.device.interrupt(Irq.MSIX, 3)
    bench.device.interrupt(Irq.MSIX, 3)

    assert bench.irq.take() == []
    assert pending(bench) == 1 << 3

    set_mask(bench, 3, False)

    assert bench.irq.take() == [0x33]
    assert pending(bench) == 0


def test_function_mask_holds_all_vectors(bench: VfioBench) -> None:
    enable_msix(bench)
    program(bench, 0, 1)
    enable_msix(bench, ENABLE | MASK_ALL)
    bench.device.interrupt(Irq.MSIX, 0)

    assert bench.irq.take() == []
    enable_msix(bench)
    assert bench.irq.take() == [1]


def test_what_came_last_is_forgotten_with_msix_off(bench: VfioBench) -> None:
    enable_msix(bench)
    program(bench, 0, 1)
    set_mask(bench, 0, True)
    bench.device.interrupt(Irq.MSIX, 0)
    enable_msix(bench, 0)
    enable_msix(bench)
    set_mask(bench, 0, False)

    assert bench.irq.take() == []


def test_table_is_the_guests_and_the_device_never_sees_it(bench: VfioBench) -> None:
    program(bench, 5, 0x1234)

    assert bench.mmio.read(bench.bar(0) + TABLE + 16 * 5 + 8, 4) == 0x1234
    assert bench.device.peek(0, TABLE + 16 * 5 + 8, 4) == 0


@pytest.mark.parametrize(
    ("offset", "size"), [(1, 1), (2, 2), (2, 4), (4, 8), (16 * VECTORS - 4, 8)]
)
def test_crooked_writes_to_the_table_are_dropped(bench: VfioBench, offset: int, size: int) -> None:
    before = bench.mmio.read(bench.bar(0) + TABLE + offset, size)

    bench.mmio.write(bench.bar(0) + TABLE + offset, size, 0x5A5A_5A5A)

    assert bench.mmio.read(bench.bar(0) + TABLE + offset, size) == before


def test_host_with_few_vectors_gives_those(make_bench: MakeBench) -> None:
    device = a_device()
    device.vectors = 3
    bench = make_bench(device)
    enable_msix(bench)
    program(bench, 1, 0x11)
    program(bench, 6, 0x66)

    bench.device.interrupt(Irq.MSIX, 1)

    assert bench.irq.take() == [0x11]
    assert "vector 6" in bench.warnings[-1]


def enable_msi(bench: VfioBench, logarithm: int = 0) -> None:
    bench.driver.write_pci(MSI_AT + 4, 4, ADDRESS)
    bench.driver.write_pci(MSI_AT + 12, 2, 0x50)
    control = pci.MsiControl.ENABLE | logarithm << pci.MSI_ENABLED_SHIFT
    bench.driver.write_pci(MSI_AT + 2, 2, control)


def test_msi_sends_the_guests_message(bench: VfioBench) -> None:
    enable_msi(bench)
    bench.device.interrupt(Irq.MSI)

    assert bench.irq.take() == [0x50]
    assert bench.device.kinds & {Irq.INTX, Irq.MSIX} == set()


def test_msi_vectors_differ_in_their_low_bits(bench: VfioBench) -> None:
    enable_msi(bench, logarithm=2)
    bench.driver.write_pci(MSI_AT + 12, 2, 0x53)
    for vector in range(4):
        bench.device.interrupt(Irq.MSI, vector)

    assert sorted(bench.irq.take()) == [0x50, 0x51, 0x52, 0x53]


def test_no_more_msi_vectors_than_the_device_has(bench: VfioBench) -> None:
    enable_msi(bench, logarithm=7)

    assert len([kind for kind, _ in bench.device.triggers if kind == Irq.MSI]) == 4


def test_msi_follows_its_message(bench: VfioBench) -> None:
    enable_msi(bench)
    bench.driver.write_pci(MSI_AT + 12, 2, 0x77)
    bench.device.interrupt(Irq.MSI)

    assert bench.irq.take() == [0x77]


def test_msix_wins_over_msi(bench: VfioBench) -> None:
    enable_msi(bench)
    enable_msix(bench)

    assert bench.device.kinds & {Irq.MSI, Irq.MSIX} == {Irq.MSIX}


def test_eventfds_that_the_kernel_has_are_the_guests(bench: VfioBench) -> None:
    enable_msix(bench)
    program(bench, 0, 9)
    os.eventfd_write(bench.device.triggers[Irq.MSIX, 0], 1)

    assert bench.irq.messages == []
    assert bench.irq.take() == [9]
