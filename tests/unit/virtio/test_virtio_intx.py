"""Virtio by INTA#: the ISR byte drives a level, reading it releases; MSI-X takes over and back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from minivmm.errors import UsageError
from minivmm.spec import pci, virtio_pci
from minivmm.spec.virtio import DeviceStatus
from minivmm.spec.virtio_pci import NO_VECTOR, CapabilityType, CommonConfig
from minivmm.testing.driver import DeviceBench, VirtioPciDriver
from minivmm.testing.echo import EchoDevice
from minivmm.testing.fake_irq import FakeLine
from minivmm.virtio.options import VirtioOptions

CONTROL = pci.Command.MEMORY_SPACE | pci.Command.BUS_MASTER
CONFIG, QUEUE = virtio_pci.Isr.CONFIG, virtio_pci.Isr.QUEUE


def make_echo(identifier: str = "echo0", **options: object) -> EchoDevice:
    made = EchoDevice(identifier)
    made.options = VirtioOptions(**options)  # type: ignore[arg-type]
    return made


@pytest.fixture
def echo() -> EchoDevice:
    return make_echo(vectors=0)


@pytest.fixture
def bench(echo: EchoDevice) -> Iterator[DeviceBench]:
    with DeviceBench(echo) as made:
        yield made


@pytest.fixture
def driver(bench: DeviceBench) -> VirtioPciDriver:
    return bench.driver.start()


@pytest.fixture
def line(bench: DeviceBench) -> FakeLine:
    """The bench has its device in slot 1."""
    return bench.irq.lines[17]


# -- without any vectors ---------------------------------------------------------------------------


def test_no_vectors_means_no_msix_at_all(bench: DeviceBench) -> None:
    driver = bench.driver.probe()
    assert driver.msix_capability == 0
    assert driver.read_pci(pci.BAR0 + 8, 4) == 0
    assert bench.irq.routes == []


@pytest.mark.rule("PCI-D-31")
@pytest.mark.parametrize("vector", [0, 1, 0x7FF, NO_VECTOR])
def test_no_event_can_be_mapped_then(bench: DeviceBench, vector: int) -> None:
    """PCI-D-31: what cannot be mapped reads back as NO_VECTOR."""
    driver = bench.driver.probe()
    for name in ("config_msix_vector", "queue_msix_vector"):
        driver.set(name, vector)
        assert driver.get(name) == NO_VECTOR


@pytest.mark.rule("PCI-D-21", "PCI-D-22")
def test_used_buffers_assert_the_pin_until_isr_is_read(
    driver: VirtioPciDriver, line: FakeLine
) -> None:
    assert driver.request(0, b"abc", 3) == b"abc"
    assert line.level
    assert driver.read_pci(pci.STATUS, 2) & pci.Status.INTERRUPT

    assert driver.isr() == QUEUE

    assert not line.level
    assert not driver.read_pci(pci.STATUS, 2) & pci.Status.INTERRUPT
    assert driver.isr() == 0


@pytest.mark.rule("PCI-D-20", "PCI-D-21", "PCI-D-22")
def test_a_configuration_change_asserts_the_pin(
    driver: VirtioPciDriver, line: FakeLine, echo: EchoDevice
) -> None:
    echo.signals.config()
    assert line.levels == [True]
    assert driver.isr() == CONFIG
    assert line.levels == [True, False]


def test_one_interrupt_may_mean_both(
    driver: VirtioPciDriver, line: FakeLine, echo: EchoDevice
) -> None:
    """PCI-V-10; the level is there once, however many events came."""
    driver.request(0, b"a", 1)
    driver.request(1, b"b", 1)
    echo.signals.config()
    assert line.levels == [True]
    assert driver.isr() == CONFIG | QUEUE
    assert line.levels == [True, False]


def test_interrupts_come_again_after_each_read(driver: VirtioPciDriver, line: FakeLine) -> None:
    for n in range(3):
        driver.request(0, bytes([n]), 1)
        assert driver.isr() == QUEUE
    assert line.levels == [True, False] * 3


def test_nothing_interrupts_before_driver_ok(
    bench: DeviceBench, line: FakeLine, echo: EchoDevice
) -> None:
    """GEN-D-1."""
    driver = bench.driver.probe()
    driver.negotiate()
    driver.setup_queue(0).add([b"x"], [1])
    driver.kick(0)
    echo.signals.config()
    assert line.levels == []
    driver.add_status(DeviceStatus.DRIVER_OK)
    assert line.level


def test_interrupt_disable_holds_the_pin_back(
    driver: VirtioPciDriver, line: FakeLine, echo: EchoDevice
) -> None:
    driver.write_pci(pci.COMMAND, 2, CONTROL | pci.Command.INTX_DISABLE)
    echo.signals.config()
    assert line.levels == []
    driver.write_pci(pci.COMMAND, 2, CONTROL)
    assert line.levels == [True]


def test_the_pin_does_not_need_bus_mastering(
    driver: VirtioPciDriver, line: FakeLine, echo: EchoDevice
) -> None:
    """A pin is no memory write, unlike a message (PCI 6.2.2 bit 2)."""
    driver.write_pci(pci.COMMAND, 2, pci.Command.MEMORY_SPACE)
    echo.signals.config()
    assert line.level


def test_device_reset_releases_the_pin(
    driver: VirtioPciDriver, line: FakeLine, echo: EchoDevice
) -> None:
    """GEN-D-5."""
    echo.signals.config()
    driver.reset()
    assert line.levels == [True, False]
    assert driver.isr() == 0


@pytest.mark.parametrize("size", [2, 4, 8])
def test_only_a_byte_access_reads_isr(
    driver: VirtioPciDriver, line: FakeLine, echo: EchoDevice, size: int
) -> None:
    """PCI-V-2: its natural width; others neither see nor clear it."""
    echo.signals.config()
    assert driver.read(CapabilityType.ISR, 0, size) == 0
    assert driver.read(CapabilityType.ISR, 1, 1) == 0
    assert line.level
    assert driver.isr() == CONFIG


def test_isr_ignores_writes(driver: VirtioPciDriver, line: FakeLine, echo: EchoDevice) -> None:
    echo.signals.config()
    driver.write(CapabilityType.ISR, 0, 1, 0)
    assert line.level
    assert driver.isr() == CONFIG


def test_functions_on_one_line_release_it_together(bench: DeviceBench, line: FakeLine) -> None:
    """Slots 1 and 9; each driver reads only its own device's ISR."""
    _, second = bench.add(make_echo("echo1", vectors=0), 9)
    first = bench.driver.start()
    second.start()

    first.request(0, b"1", 1)
    second.request(0, b"2", 1)
    assert first.isr() == QUEUE
    assert line.level
    assert second.isr() == QUEUE

    assert line.levels == [True, False]


# -- vectors there are, and the driver may use them or not -----------------------------------------


@pytest.fixture
def both() -> Iterator[DeviceBench]:
    with DeviceBench(EchoDevice()) as made:
        yield made


def test_a_driver_that_leaves_msix_off_gets_the_pin(both: DeviceBench) -> None:
    driver = both.driver.start()
    driver.set_msix_control(0)
    driver.request(0, b"a", 1)
    assert both.irq.lines[17].level
    assert (both.irq.take(), driver.isr()) == ([], QUEUE)


def test_msix_never_asserts_the_pin(both: DeviceBench) -> None:
    driver = both.driver.start()
    driver.request(0, b"a", 1)
    both.device.signals.config()
    assert both.irq.lines[17].levels == []
    assert both.irq.take() == [1, 0]
    assert not driver.read_pci(pci.STATUS, 2) & pci.Status.INTERRUPT


@pytest.mark.rule("PCI-D-21")
def test_switching_msix_on_silences_the_pin_and_off_wakes_it(both: DeviceBench) -> None:
    """PCI-D-21: with MSI-X disabled, Interrupt Status equals the OR of the ISR bits."""
    driver = both.driver.start()
    line = both.irq.lines[17]
    both.device.signals.config()
    assert line.levels == []

    driver.set_msix_control(0)
    assert line.level
    assert driver.read_pci(pci.STATUS, 2) & pci.Status.INTERRUPT
    driver.set_msix_control(pci.MsixControl.ENABLE)
    assert not line.level
    driver.set_msix_control(0)

    assert driver.isr() == CONFIG
    assert line.levels == [True, False, True, False]


def test_function_mask_is_not_the_same_as_msix_off(both: DeviceBench) -> None:
    driver = both.driver.start()
    driver.set_msix_control(pci.MsixControl.ENABLE | pci.MsixControl.FUNCTION_MASK)
    driver.request(0, b"a", 1)
    assert both.irq.lines[17].levels == []
    driver.set_msix_control(pci.MsixControl.ENABLE)
    assert both.irq.take() == [1]


# -- the option ------------------------------------------------------------------------------------


@pytest.mark.rule("PCI-D-27", "PCI-D-31")
@pytest.mark.parametrize("vectors", [1, 2, 3, 64, 128])
def test_as_many_vectors_as_the_user_wants(vectors: int) -> None:
    with DeviceBench(make_echo(vectors=vectors)) as bench:
        driver = bench.driver.start()
        assert driver.vectors == vectors
        driver.set("config_msix_vector", vectors - 1)
        assert driver.get("config_msix_vector") == vectors - 1
        driver.set("config_msix_vector", vectors)
        assert driver.get("config_msix_vector") == NO_VECTOR
        assert driver.request(1, b"abc", 3) == b"abc"
        assert bench.irq.take() == [min(2, vectors - 1)]


def test_more_vectors_than_the_table_can_have_are_refused() -> None:
    with pytest.raises(UsageError, match=r"vectors 129 is out of range: use 0 to 128"):
        VirtioOptions(vectors=129)


# -- function level reset --------------------------------------------------------------------------


def test_function_reset_is_offered_on_demand() -> None:
    for options, offered in (({}, False), ({"flr": True}, True)):
        with DeviceBench(make_echo(**options)) as bench:
            assert bool(bench.driver.capability(pci.CapabilityId.ADVANCED_FEATURES)) == offered


def test_function_reset_resets_the_device_and_restored_registers_revive_it() -> None:
    """As Linux does it: save configuration space, reset, restore, probe again."""
    echo = make_echo(flr=True)
    with DeviceBench(echo) as bench:
        driver = bench.driver.start()
        ring = driver.queues[0]
        bars = {at: driver.read_pci(at, 4) for at in (0x10, 0x14, 0x18)}
        resets = echo.resets

        driver.reset_function()

        assert echo.resets == resets + 1
        assert bench.function.transport.status == DeviceStatus(0)
        assert bench.doorbells.bound == {}
        assert driver.read_pci(pci.COMMAND, 2) == 0
        assert driver.read_pci(driver.msix_capability + 2, 2) == 2
        ring.add([b"late"], [4])
        bench.function.transport.kick(0)
        assert ring.collect() == []
        for at, value in bars.items():
            driver.write_pci(at, 4, value)
        assert driver.start().request(0, b"again", 5) == b"again"


# -- accesses that arrive in pieces ----------------------------------------------------------------


@pytest.mark.rule("PCI-D-4")
@pytest.mark.parametrize("order", [(0, 4), (4, 0)])
def test_halves_of_an_address_may_come_in_either_order(
    bench: DeviceBench, order: tuple[int, int]
) -> None:
    driver = bench.driver.probe()
    place = CommonConfig.OFFSETS["queue_driver"]
    for half in order:
        driver.write(CapabilityType.COMMON, place + half, 4, 0x1234_5678_9ABC_DEF0 >> 8 * half)
    assert driver.read(CapabilityType.COMMON, place, 8) == 0x1234_5678_9ABC_DEF0
    assert driver.read(CapabilityType.COMMON, place + 4, 4) == 0x1234_5678


def test_an_access_that_leaves_its_structure_does_nothing(bench: DeviceBench) -> None:
    """Common configuration ends at 0x1000, where ISR begins; the BAR ends at 0x4000."""
    bench.driver.start()
    base = bench.driver.bar_address(0)
    for offset in (0x0FFC, 0x1FFF, 0x2FFE, 0x3FFC):
        bench.mmio.write(base + offset, 8, 0)
        assert bench.mmio.read(base + offset, 8) == (1 << 64) - 1
    assert bench.driver.request(0, b"fine", 4) == b"fine"


# -- BARs that move while the device runs ----------------------------------------------------------


def test_a_doorbell_that_nobody_heard_is_made_up_for_when_the_bar_moves(both: DeviceBench) -> None:
    """KVM had counted it, but its eventfd was closed before the loop looked."""
    driver = both.driver.start()
    driver.queues[0].add([b"unheard"], [7])
    driver.write_pci(0x14, 4, (driver.bar_address(0) >> 32) + 1)
    assert driver.queues[0].collect()[0].data == b"unheard"


def test_sizing_a_bar_of_a_running_device_leaves_it_as_it_was(both: DeviceBench) -> None:
    """Linux sizes with decoding off; others do not."""
    driver = both.driver.start()
    before = dict(both.doorbells.bound)
    for register in (0x10, 0x14, 0x18):
        old = driver.read_pci(register, 4)
        driver.write_pci(register, 4, 0xFFFF_FFFF)
        driver.write_pci(register, 4, old)
    assert both.doorbells.bound.keys() == before.keys()
    assert driver.request(0, b"fine", 4) == b"fine"
    assert both.irq.take() == [1]


def test_the_vector_table_moves_with_its_bar(both: DeviceBench) -> None:
    driver = both.driver.start()
    old = driver.bar_address(2)
    driver.write_pci(0x18, 4, old + 0x10_0000)
    assert both.mmio.read(old, 4) == 0xFFFF_FFFF
    driver.set_msix_entry(1, pci.MsixEntry(0xFEE0_3000, 0, 0x77, 0))
    driver.request(0, b"a", 1)
    assert both.irq.messages == [(0xFEE0_3000, 0x77)]
