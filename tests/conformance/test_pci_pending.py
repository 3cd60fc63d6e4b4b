"""MSI-X messages that cannot leave: masks, pending bits, and events that move meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import pytest

from minivmm.spec import pci
from minivmm.spec.virtio import Feature
from minivmm.spec.virtio_pci import NO_VECTOR
from minivmm.testing.driver import MESSAGE_ADDRESS, DeviceBench, VirtioPciDriver
from minivmm.testing.echo import EchoDevice
from minivmm.testing.vectors import cause, map_event, mask, pending

ENABLE, MASK = pci.MsixControl.ENABLE, pci.MsixControl.FUNCTION_MASK
CONTROL = pci.Command.MEMORY_SPACE | pci.Command.BUS_MASTER


@pytest.fixture
def bench() -> Iterator[DeviceBench]:
    with DeviceBench(EchoDevice()) as made:
        yield made


@pytest.fixture
def driver(bench: DeviceBench) -> VirtioPciDriver:
    """Running: configuration changes on vector 0, queue 0 on 1, queue 1 on 2."""
    return bench.driver.start()


def by_entry(driver: VirtioPciDriver, masked: bool) -> None:
    mask(driver, 1, masked=masked)


def by_function(driver: VirtioPciDriver, masked: bool) -> None:
    driver.set_msix_control(ENABLE | MASK if masked else ENABLE)


def by_bus_master(driver: VirtioPciDriver, masked: bool) -> None:
    driver.write_pci(pci.COMMAND, 2, pci.Command.MEMORY_SPACE if masked else CONTROL)


HOLDS: list[Callable[[VirtioPciDriver, bool], None]] = [by_entry, by_function, by_bus_master]


@pytest.mark.rule("PCI-D-1")
@pytest.mark.parametrize("holds", list(product([False, True], repeat=3)))
def test_a_message_waits_until_nothing_holds_it_and_comes_once(
    bench: DeviceBench, driver: VirtioPciDriver, holds: tuple[bool, ...]
) -> None:
    """PCI 6.8.3.5, all combinations of holds; released one by one."""
    for hold, wanted in zip(HOLDS, holds, strict=True):
        hold(driver, wanted)
    for _ in range(3):
        bench.device.signals.queue(0)
    held = any(holds)
    assert bench.irq.take() == ([] if held else [1, 1, 1])
    assert pending(bench) == (0b10 if held else 0)

    for at, hold in enumerate(HOLDS):
        if holds[at]:
            hold(driver, False)
            last = not any(holds[at + 1 :])
            assert bench.irq.take() == ([1] if last else [])
            assert pending(bench) == (0 if last else 0b10)


@pytest.mark.rule("PCI-D-28")
def test_events_that_share_a_masked_vector_become_one_message(
    bench: DeviceBench, driver: VirtioPciDriver
) -> None:
    for event in (0, 1, 2):
        map_event(driver, event, 1)
    mask(driver, 1)
    for event in (0, 1, 2):
        cause(bench, event)
    assert (bench.irq.take(), pending(bench)) == ([], 0b10)

    mask(driver, 1, masked=False)

    assert (bench.irq.take(), pending(bench)) == ([1], 0)


def test_pending_bits_cannot_be_written(bench: DeviceBench, driver: VirtioPciDriver) -> None:
    mask(driver, 1)
    cause(bench, 1)
    place = driver.read_pci(driver.msix_capability + 8, 4)
    for value in (0, (1 << 64) - 1):
        bench.mmio.write(driver.bar_address(place & 7) + (place & ~7), 8, value)
        assert pending(bench) == 0b10


def test_a_masked_vector_that_is_given_another_target_goes_there(
    bench: DeviceBench, driver: VirtioPciDriver
) -> None:
    """As interrupts move between CPUs; the other vectors stay where they are."""
    mask(driver, 1)
    cause(bench, 1)
    driver.set_msix_entry(1, pci.MsixEntry(MESSAGE_ADDRESS | 3 << 12, 0, 0x61, 1))
    assert bench.irq.messages == []

    driver.set_msix_entry(1, pci.MsixEntry(MESSAGE_ADDRESS | 3 << 12, 0, 0x61, 0))
    cause(bench, 2)
    cause(bench, 1)

    moved = (MESSAGE_ADDRESS | 3 << 12, 0x61)
    assert bench.irq.messages == [moved, (MESSAGE_ADDRESS, 2), moved]


def test_an_unmasked_vector_may_be_given_another_target(
    bench: DeviceBench, driver: VirtioPciDriver
) -> None:
    for data in (0x30, 0x31, 0x30):
        mask(driver, 2, masked=False, data=data)
        cause(bench, 2)
    assert bench.irq.take() == [0x30, 0x31, 0x30]


# -- events that move while they are pending -------------------------------------------------------


@pytest.mark.rule("PCI-D-32")
@pytest.mark.parametrize("event", [0, 1])
def test_a_pending_message_ends_when_its_event_is_unmapped(
    bench: DeviceBench, driver: VirtioPciDriver, event: int
) -> None:
    mask(driver, event)
    cause(bench, event)

    map_event(driver, event, NO_VECTOR)

    assert pending(bench) == 0
    mask(driver, event, masked=False)
    assert bench.irq.take() == []


@pytest.mark.rule("PCI-D-28")
def test_a_pending_message_goes_along_when_its_event_moves(
    bench: DeviceBench, driver: VirtioPciDriver
) -> None:
    """It would be lost otherwise, and the driver could wait for ever."""
    map_event(driver, 2, NO_VECTOR)
    mask(driver, 1)
    cause(bench, 1)

    map_event(driver, 1, 2)

    assert (bench.irq.take(), pending(bench)) == ([2], 0)
    mask(driver, 1, masked=False)
    assert bench.irq.take() == []


@pytest.mark.rule("PCI-D-28")
@pytest.mark.parametrize(("new", "told"), [(2, [2, 1]), (NO_VECTOR, [1])])
def test_a_pending_message_of_a_shared_vector_stays_for_the_others(
    bench: DeviceBench, driver: VirtioPciDriver, new: int, told: list[int]
) -> None:
    """Nobody knows any more whose it is, so each that may have one gets one."""
    map_event(driver, 0, 1)
    map_event(driver, 2, NO_VECTOR)
    mask(driver, 1)
    cause(bench, 0)

    map_event(driver, 1, new)
    mask(driver, 1, masked=False)

    assert bench.irq.take() == told


def test_mapping_an_event_to_where_it_is_sends_nothing(
    bench: DeviceBench, driver: VirtioPciDriver
) -> None:
    mask(driver, 1)
    cause(bench, 1)
    map_event(driver, 1, 1)
    assert (bench.irq.take(), pending(bench)) == ([], 0b10)


@pytest.mark.rule("GEN-D-7", "PCI-D-14")
def test_the_pending_message_of_a_queue_ends_with_its_reset(
    bench: DeviceBench, driver: VirtioPciDriver
) -> None:
    assert driver.has(Feature.RING_RESET)
    mask(driver, 1)
    cause(bench, 1)

    driver.reset_queue(0)
    mask(driver, 1, masked=False)

    assert bench.irq.take() == []
    driver.setup_queue(0)
    cause(bench, 1)
    assert bench.irq.take() == [1]
