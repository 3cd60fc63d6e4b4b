"""Which bits of a passed-on device's configuration space are its own, and which are ours."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from minivmm.spec import pci
from minivmm.spec.pci import Express
from minivmm.testing.vfio_bench import (
    EXPRESS_AT,
    MEMORY_AND_MASTER,
    MSI_AT,
    POWER_AT,
    VfioBench,
    a_device,
)

CONFIG = 7
MakeBench = Callable[..., VfioBench]


def test_identity_is_the_devices_own(bench: VfioBench) -> None:
    assert bench.driver.read_pci(0, 4) == 0x5678_1234


def test_place_of_bars_is_ours_and_never_reaches_the_device(bench: VfioBench) -> None:
    before = bench.device.peek(CONFIG, pci.BAR0, 4)

    bench.driver.write_pci(pci.BAR0, 4, 0xFFFF_FFFF)

    assert bench.driver.read_pci(pci.BAR0, 4) == 0xFFFF_8000 | 0xC  # 32 KiB, 64-bit, prefetchable
    assert bench.device.peek(CONFIG, pci.BAR0, 4) == before


def test_ports_and_rom_are_left_out(bench: VfioBench) -> None:
    for register in (pci.BAR0 + 8, pci.EXPANSION_ROM):
        bench.driver.write_pci(register, 4, 0xFFFF_FFFF)
        assert bench.driver.read_pci(register, 4) == 0


def test_function_is_alone_in_its_slot_and_pulls_pin_a(bench: VfioBench) -> None:
    assert bench.driver.read_pci(pci.HEADER_TYPE, 1) == 0
    assert bench.driver.read_pci(pci.INTERRUPT_PIN, 1) == pci.INTA


def test_command_is_written_to_the_device_as_well(bench: VfioBench) -> None:
    assert bench.device.peek(CONFIG, pci.COMMAND, 2) == MEMORY_AND_MASTER

    bench.driver.write_pci(pci.COMMAND, 2, pci.Command.INTX_DISABLE)

    assert bench.device.peek(CONFIG, pci.COMMAND, 2) == pci.Command.INTX_DISABLE


def test_word_that_is_ours_in_part_reaches_the_device_in_that_part(bench: VfioBench) -> None:
    bench.driver.write_pci(pci.CACHE_LINE_SIZE, 4, 0x1122_3344)  # ours, latency, ours, self-test

    assert bench.driver.read_pci(pci.CACHE_LINE_SIZE, 1) == 0x44
    assert bench.device.peek(CONFIG, pci.CACHE_LINE_SIZE, 4) == 0x1180_3300


def test_unknown_registers_are_the_devices_own(bench: VfioBench) -> None:
    bench.driver.write_pci(0xF0, 4, 0xCAFE)
    bench.device.poke(CONFIG, 0xF4, 4, 0xBEEF)

    assert bench.device.peek(CONFIG, 0xF0, 4) == 0xCAFE
    assert bench.driver.read_pci(0xF4, 4) == 0xBEEF


def test_express_endpoint_becomes_part_of_the_root_complex(bench: VfioBench) -> None:
    flags = bench.driver.read_pci(EXPRESS_AT + Express.FLAGS, 2)

    assert flags == Express.INTEGRATED_ENDPOINT | 2
    assert bench.driver.read_pci(EXPRESS_AT + Express.LINK, 4) == 0


def test_single_masks_of_msi_are_not_offered(bench: VfioBench) -> None:
    control = bench.driver.read_pci(MSI_AT + 2, 2)

    assert control == pci.MsiControl.WIDE | 0b010 << pci.MSI_CAPABLE_SHIFT


def test_windows_close_before_the_device_stops_answering(bench: VfioBench) -> None:
    """A CPU that met a device without memory space would end the machine."""
    order: list[str] = []
    real = bench.function._config.send
    bench.function._config.send = (  # type: ignore[method-assign]
        lambda *words: order.append(f"{len(bench.windows.shown)} open") or real(*words)
    )
    assert bench.windows.shown

    bench.driver.write_pci(pci.COMMAND, 2, 0)
    bench.driver.write_pci(pci.COMMAND, 2, MEMORY_AND_MASTER)

    assert order == ["0 open", "0 open"]
    assert bench.windows.shown


def test_sleeping_device_has_no_windows(bench: VfioBench) -> None:
    bench.driver.write_pci(POWER_AT + pci.POWER_CONTROL, 2, 3)
    asleep = dict(bench.windows.shown)
    bench.driver.write_pci(POWER_AT + pci.POWER_CONTROL, 2, 0)

    assert not asleep
    assert bench.windows.shown
    assert bench.device.peek(CONFIG, POWER_AT + pci.POWER_CONTROL, 2) == 0


def header(identifier: int, following: int) -> bytes:
    return (identifier | 1 << 16 | following << 20).to_bytes(4, "little")


@pytest.fixture
def extended(make_bench: MakeBench) -> VfioBench:
    """A device with a serial number at 0x100, SR-IOV at 0x110 and error reports at 0x150."""
    chain = header(3, 0x110) + bytes(12) + header(0x10, 0x150) + bytes(60) + header(1, 0)
    return make_bench(a_device(extended=chain))


def test_hidden_capability_stays_a_link_in_the_chain(extended: VfioBench) -> None:
    read = extended.driver.read_pci

    assert read(0x100, 4) & 0xFFFF == 3
    assert read(0x110, 4) == 0x150 << 20
    assert read(0x110, 2) == 0
    assert read(0x112, 2) == 0x150 << 4
    assert read(0x150, 4) & 0xFFFF == 1


def test_hidden_capability_cannot_be_written(extended: VfioBench) -> None:
    extended.driver.write_pci(0x118, 4, 1)
    extended.driver.write_pci(0x158, 4, 1)

    assert extended.device.peek(CONFIG, 0x118, 4) == 0
    assert extended.device.peek(CONFIG, 0x158, 4) == 1


def test_chain_that_bites_its_tail_ends(make_bench: MakeBench) -> None:
    bench = make_bench(a_device(extended=header(3, 0x100)))

    assert bench.driver.read_pci(0x100, 4)


def test_device_without_extended_space_reads_zeroes_there(bench: VfioBench) -> None:
    assert bench.driver.read_pci(0x100, 4) == 0
