"""A guest that writes anything anywhere: nothing raises, and nothing is shown that must not be."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from minivmm.memory.layout import Window
from minivmm.spec import pci
from minivmm.testing.vfio_bench import (
    EXPRESS_AT,
    MEMORY_AND_MASTER,
    MSI_AT,
    MSIX_AT,
    POWER_AT,
    VECTORS,
    VfioBench,
    a_device,
)
from minivmm.vfio.abi import Irq

MakeBench = Callable[..., VfioBench]
CONFIG = 7
STEPS = 1500
PLACES = (pci.COMMAND, pci.BAR0, pci.BAR0 + 4, pci.BAR0 + 12, MSI_AT, MSIX_AT, POWER_AT, EXPRESS_AT)


def anywhere(chance: random.Random) -> tuple[int, int]:
    """(offset, size) of a configuration access, most of them where it matters."""
    size = chance.choice((1, 2, 4))
    near = chance.choice(PLACES) + chance.randrange(16)
    at = chance.choice((near, near, near, chance.randrange(4096)))
    return at - at % size, size


def anything(chance: random.Random, size: int) -> int:
    """A value, often one that places a BAR inside a PCI window or switches everything on."""
    value = chance.choice(
        (0, (1 << 8 * size) - 1, 6, 0x8000, 0xC000, 0xC000_0000, chance.getrandbits(8 * size))
    )
    return value & ((1 << 8 * size) - 1)


def sensible(bench: VfioBench, chance: random.Random) -> None:
    """What a driver would do: random writes alone seldom get a device to work."""
    write = bench.driver.write_pci
    if chance.random() < 0.5:
        write(POWER_AT + pci.POWER_CONTROL, 2, 0)
        bench.pci.assign_bars()
        write(pci.COMMAND, 2, MEMORY_AND_MASTER)
    else:
        write(MSI_AT + 2, 2, chance.choice((0, 0x21)))
        control = chance.choice((0, pci.MsixControl.ENABLE, 3 << 14))
        write(MSIX_AT + 2, 2, control)
        for vector in range(VECTORS):
            for bar in bench.function.bars:
                if bar.index == 0 and bar.mapped is not None:
                    bench.mmio.write(bar.mapped + 0x2000 + 16 * vector + 12, 4, vector & 1)


def check(bench: VfioBench, windows: list[Window], trapped: range) -> None:
    """What must hold whatever the guest did."""
    for gpa, size in bench.windows.shown:
        assert any(one.base <= gpa and gpa + size <= one.end for one in windows)
    base = next((bar.mapped for bar in bench.function.bars if bar.index == 0), None)
    if base is not None:
        for gpa, size in bench.windows.shown:
            assert gpa + size <= base + trapped.start or base + trapped.stop <= gpa
    if bench.windows.shown:
        assert bench.device.peek(CONFIG, pci.COMMAND, 2) & pci.Command.MEMORY_SPACE
        assert not bench.device.peek(CONFIG, POWER_AT + pci.POWER_CONTROL, 1) & 3
    assert len(bench.device.kinds & {Irq.INTX, Irq.MSI, Irq.MSIX}) <= 1


@pytest.mark.parametrize("seed", range(4))
def test_random_guest_breaks_nothing(make_bench: MakeBench, seed: int) -> None:
    device = a_device(extended=b"\x10\x00\x01\x14" + bytes(60) + b"\x01\x00\x01\x00")
    device.resizable = bool(seed & 1)
    bench = make_bench(device)
    windows = list(bench.pci._windows)
    chance = random.Random(seed)
    for _ in range(STEPS):
        action = chance.random()
        if action < 0.3:
            sensible(bench, chance)
        elif action < 0.6:
            at, size = anywhere(chance)
            bench.driver.write_pci(at, size, anything(chance, size))
            bench.driver.read_pci(at, size)
        elif action < 0.9:
            for bar in bench.function.bars:
                if bar.mapped is not None:
                    size = chance.choice((1, 2, 4, 8))
                    at = bar.mapped + chance.randrange(0x2000, 0x3100) % bar.size // size * size
                    bench.mmio.write(at, size, chance.getrandbits(8 * size))
                    bench.mmio.read(at, size)
        elif action < 0.98:
            for kind, vector in list(device.triggers):
                if device.triggers[kind, vector] >= 0 and kind in (Irq.MSI, Irq.MSIX):
                    device.interrupt(kind, vector)
            bench.irq.take()
        else:
            bench.function.reset()
            bench.pci.assign_bars()
        check(bench, windows, range(0x2000, 0x4000))

    assert len(bench.warnings) <= 20
