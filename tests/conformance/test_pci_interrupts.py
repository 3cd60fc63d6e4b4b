"""Events, vectors, ISR and the pin: what reaches the driver, and how often."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest

from minivmm.spec import pci
from minivmm.spec.virtio import DeviceStatus
from minivmm.spec.virtio_pci import NO_VECTOR
from minivmm.testing.driver import DeviceBench, VirtioPciDriver
from minivmm.testing.echo import EchoDevice
from minivmm.testing.fake_irq import FakeLine, FakeMsiRoute
from minivmm.testing.vectors import cause, map_event
from minivmm.virtio.options import VirtioOptions

VECTORS = 3


@pytest.fixture
def bench() -> Iterator[DeviceBench]:
    with DeviceBench(EchoDevice()) as made:
        yield made


@pytest.fixture
def driver(bench: DeviceBench) -> VirtioPciDriver:
    """Running: configuration changes on vector 0, queue 0 on 1, queue 1 on 2."""
    return bench.driver.start()


def pinned() -> EchoDevice:
    made = EchoDevice()
    made.options = VirtioOptions(vectors=0)
    return made


# -- ISR before the notification -------------------------------------------------------------------


@pytest.mark.rule("PCI-D-20")
@pytest.mark.parametrize("why", ["change", "broken"])
def test_isr_tells_of_a_change_before_its_message_leaves(
    bench: DeviceBench, driver: VirtioPciDriver, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler that runs at once, on another CPU, finds bit 1; NEEDS_RESET is such a change."""
    found: list[int] = []
    monkeypatch.setattr(FakeMsiRoute, "signal", lambda route: found.append(driver.isr()))

    if why == "change":
        bench.device.signals.config()
    else:
        driver.queues[0].offer(64)
        driver.kick(0)
        assert DeviceStatus.NEEDS_RESET in driver.status

    assert found == [2]


@pytest.mark.rule("PCI-D-20", "PCI-D-21")
@pytest.mark.parametrize(("event", "bit"), [(0, 2), (1, 1), (2, 1)])
def test_isr_tells_why_before_the_pin_is_asserted(
    event: int, bit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DeviceBench(pinned()) as bench:
        driver = bench.driver.start()
        found: list[tuple[int, bool]] = []

        def handle(line: FakeLine, level: bool) -> None:
            if level:
                status = driver.read_pci(pci.STATUS, 2) & pci.Status.INTERRUPT
                found.append((driver.isr(), bool(status)))

        monkeypatch.setattr(FakeLine, "set", handle)
        cause(bench, event)
        assert found == [(bit, True)]


@pytest.mark.rule("PCI-D-20")
def test_a_change_shows_in_isr_even_if_it_is_mapped_to_no_vector(
    bench: DeviceBench, driver: VirtioPciDriver
) -> None:
    map_event(driver, 0, NO_VECTOR)
    cause(bench, 0)
    assert (bench.irq.take(), driver.isr(), driver.isr()) == ([], 2, 0)


@pytest.mark.rule("PCI-D-21", "PCI-D-22")
def test_status_bit_and_pin_are_the_or_of_isr_whatever_the_order() -> None:
    """All orders of three steps out of events and reads."""
    for steps in product(("queue", "change", "read"), repeat=3):
        with DeviceBench(pinned()) as bench:
            driver = bench.driver.start()
            isr = 0
            for step in steps:
                if step == "read":
                    assert driver.isr() == isr
                    isr = 0
                else:
                    cause(bench, step == "queue")
                    isr |= 1 if step == "queue" else 2
                status = driver.read_pci(pci.STATUS, 2) & pci.Status.INTERRUPT
                assert bool(status) is bench.irq.lines[17].level is bool(isr)


# -- events and vectors ----------------------------------------------------------------------------


@pytest.mark.rule("PCI-D-28", "PCI-D-29", "PCI-D-32")
@pytest.mark.parametrize("vectors", list(product([0, 1, 2, NO_VECTOR], repeat=3)))
def test_any_event_on_any_vector_or_none(
    bench: DeviceBench, driver: VirtioPciDriver, vectors: tuple[int, ...]
) -> None:
    for event, vector in enumerate(vectors):
        assert map_event(driver, event, vector) == vector

    for event, vector in enumerate(vectors):
        cause(bench, event)
        assert bench.irq.take() == ([] if vector == NO_VECTOR else [vector])


@pytest.mark.rule("PCI-D-29", "PCI-D-31", "PCI-D-32")
@pytest.mark.parametrize("event", [0, 1, 2])
@pytest.mark.parametrize("vector", [VECTORS, 0x7FF, 0x800, 0xFFFE])
def test_a_vector_that_is_not_there_unmaps_the_event(
    bench: DeviceBench, driver: VirtioPciDriver, event: int, vector: int
) -> None:
    assert map_event(driver, event, vector) == NO_VECTOR
    cause(bench, event)
    assert bench.irq.take() == []


@pytest.mark.rule("PCI-D-30", "PCI-D-32")
def test_a_reset_unmaps_every_event_and_leaves_the_table(
    bench: DeviceBench, driver: VirtioPciDriver
) -> None:
    """The table is PCI's; a driver that maps again finds it as it was."""
    driver.reset()
    for event in (1, 2, 0):
        name = "queue_msix_vector" if event else "config_msix_vector"
        driver.set("queue_select", max(event - 1, 0))
        assert driver.get(name) == NO_VECTOR

    driver.negotiate()
    ring = driver.setup_queue(0, vector=NO_VECTOR)
    driver.add_status(DeviceStatus.DRIVER_OK)
    ring.add([b"x"], [1])
    driver.kick(0)
    bench.device.signals.config()
    assert (len(ring.collect()), bench.irq.take()) == (1, [])

    map_event(driver, 0, 2)
    bench.device.signals.config()
    assert bench.irq.take() == [2]


@pytest.mark.rule("PCI-D-28")
def test_an_event_may_move_to_another_vector_while_the_device_runs(
    bench: DeviceBench, driver: VirtioPciDriver
) -> None:
    for vector in (2, 0, 1, NO_VECTOR, 2):
        assert map_event(driver, 1, vector) == vector
        cause(bench, 1)
        assert bench.irq.take() == ([vector] if vector != NO_VECTOR else [])
