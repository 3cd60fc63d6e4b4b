"""A driver that has nothing but configuration space: all it does goes through PCI_CFG (PCI-D-26).

Firmware works so while BARs are not decoded.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from minivmm.spec import pci
from minivmm.spec.virtio import DeviceStatus, Feature
from minivmm.spec.virtio_mem import MemConfig, MemRequest, RequestType
from minivmm.spec.virtio_pci import CapabilityType, CommonConfig
from minivmm.testing.driver import DeviceBench, VirtioPciDriver
from minivmm.testing.echo import EchoDevice
from minivmm.testing.mem_bench import make_device
from minivmm.units import GIB, MIB
from minivmm.virtio.options import VirtioOptions

BAR, OFFSET, LENGTH, DATA = 4, 8, 12, 16
"""Fields of the capability, from its start (reference B.2)."""
VERSION_1 = Feature.VERSION_1.mask


class WindowDriver(VirtioPciDriver):
    """Reaches structures by the window only; memory space stays off."""

    def read(self, kind: CapabilityType, offset: int, size: int) -> int:
        self.aim(kind, offset, size)
        return self.read_pci(self.window + DATA, size)

    def write(self, kind: CapabilityType, offset: int, size: int, value: int) -> None:
        self.aim(kind, offset, size)
        self.write_pci(self.window + DATA, size, value)

    def aim(self, kind: CapabilityType, offset: int, size: int) -> None:
        place = self.structures[kind]
        self.point(place.bar, place.offset + offset, size)

    def point(self, bar: int, offset: int, size: int) -> None:
        self.write_pci(self.window + BAR, 1, bar)
        self.write_pci(self.window + OFFSET, 4, offset)
        self.write_pci(self.window + LENGTH, 4, size)

    @property
    def window(self) -> int:
        at = self.read_pci(pci.CAPABILITIES, 1)
        while (self.read_pci(at, 1), self.read_pci(at + 3, 1)) != (0x09, CapabilityType.PCI):
            at = self.read_pci(at + 1, 1)
        return at

    def probe(self) -> WindowDriver:
        super().probe()
        self.write_pci(pci.COMMAND, 2, pci.Command.BUS_MASTER)
        return self

    def kick(self, index: int, *, by_exit: bool = False) -> None:
        self.set("queue_select", index)
        structure = self.structures[CapabilityType.NOTIFY]
        offset = self.get("queue_notify_off") * structure.multiplier
        width, value = self._doorbell(index)
        self.write(CapabilityType.NOTIFY, offset, width, value)
        self._defer.run()


def window_driver(bench: DeviceBench) -> WindowDriver:
    return WindowDriver(
        bench.mmio,
        bench.memory,
        bench.allocator,
        bench.function.slot,
        doorbells=bench.doorbells,
        defer=bench.defer,
    )


def echo(**options: object) -> EchoDevice:
    made = EchoDevice()
    made.options = VirtioOptions(**options)  # type: ignore[arg-type]
    return made


@pytest.fixture
def bench() -> Iterator[DeviceBench]:
    with DeviceBench(echo(vectors=0, flr=True)) as made:
        yield made


@pytest.fixture
def driver(bench: DeviceBench) -> WindowDriver:
    return window_driver(bench).probe()


@pytest.mark.rule("PCI-D-26")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("told", [False, True])
def test_a_device_can_be_driven_without_any_bar(packed: bool, told: bool) -> None:
    """Features, queues, doorbells of 2 and 4 bytes, ISR, the pin, and a reset at last."""
    with DeviceBench(echo(vectors=0, packed=packed, notification_data=told)) as bench:
        driver = window_driver(bench)
        driver.start()
        line = bench.irq.lines[17]

        for n in range(100):
            message = n.to_bytes(2, "little")
            assert driver.request(n % 2, message, 2) == message
            assert line.level
            assert driver.isr() == 1
            assert not line.level

        assert bench.doorbells.bound == {}
        assert [bar.mapped for bar in bench.function.bars] == [None]
        driver.reset()
        assert driver.status == DeviceStatus(0)


@pytest.mark.rule("PCI-D-26")
def test_memory_can_be_plugged_so_and_the_configuration_read() -> None:
    device = make_device(size=GIB, requested_size=64 * MIB, vectors=0)
    with DeviceBench(device) as bench:
        driver = window_driver(bench)
        driver.start()
        plug = MemRequest(RequestType.PLUG, addr=4 * GIB, nb_blocks=4).build()

        assert driver.request(0, plug, 10) == bytes(10)

        assert MemConfig.parse(driver.read_config(MemConfig.SIZE)).plugged_size == 8 * MIB


@pytest.mark.rule("PCI-D-26")
def test_vectors_can_be_set_up_and_unmasked_so() -> None:
    with DeviceBench(EchoDevice()) as bench:
        driver = window_driver(bench)
        driver.start()  # which unmasks by the BAR: nothing hears that
        table = bench.function.bars[-1].index
        driver.set("config_msix_vector", 0)
        bench.device.signals.config()
        assert bench.irq.messages == []

        for offset, word in ((0, 0xFEE0_1000), (4, 0), (8, 0x41), (12, 0)):
            driver.point(table, offset, 4)
            driver.write_pci(driver.window + DATA, 4, word)

        assert bench.irq.messages == [(0xFEE0_1000, 0x41)]


@pytest.mark.rule("PCI-D-26", "PCI-D-4")
def test_64_bit_fields_go_by_halves(driver: WindowDriver) -> None:
    driver.set("queue_desc", 0x1122_3344_5566_7788)

    assert driver.get("queue_desc") == 0x1122_3344_5566_7788
    driver.aim(CapabilityType.COMMON, CommonConfig.OFFSETS["queue_desc"], 8)
    driver.write_pci(driver.window + DATA, 4, 0)
    assert driver.get("queue_desc") == 0x1122_3344_5566_7788  # 8 is no length of an access


@pytest.mark.rule("PCI-D-26")
def test_every_read_of_the_data_reads_the_bar_again(
    bench: DeviceBench, driver: WindowDriver
) -> None:
    device = bench.device
    assert isinstance(device, EchoDevice)
    driver.aim(CapabilityType.DEVICE, 0, 4)
    seen = []
    for n in range(3):
        device.config[0] = n
        seen.append(driver.read_pci(driver.window + DATA, 1))
    assert seen == [0, 1, 2]


@pytest.mark.rule("PCI-D-26")
def test_looking_at_the_other_fields_accesses_nothing(
    bench: DeviceBench, driver: WindowDriver
) -> None:
    driver.negotiate()
    driver.setup_queue(0)
    driver.add_status(DeviceStatus.DRIVER_OK)
    bench.device.signals.config()
    driver.aim(CapabilityType.ISR, 0, 1)

    for at in range(0, DATA, 4):
        driver.read_pci(driver.window + at, 4)
    driver.aim(CapabilityType.ISR, 0, 1)
    driver.write_pci(driver.window + LENGTH, 4, 1)

    assert driver.read_pci(driver.window + DATA, 1) == 2


@pytest.mark.rule("PCI-D-26")
@pytest.mark.parametrize("size", [1, 2, 4])
def test_no_more_than_the_length_is_written(
    bench: DeviceBench, driver: WindowDriver, size: int
) -> None:
    device = bench.device
    assert isinstance(device, EchoDevice)
    driver.aim(CapabilityType.DEVICE, 4, size)

    driver.write_pci(driver.window + DATA, 4, 0xA4A3_A2A1)

    written = bytes((0xA1, 0xA2, 0xA3, 0xA4)[:size])
    assert bytes(device.config) == bytes(range(4)) + written + bytes(range(4 + size, 8))


def test_a_reset_of_the_device_leaves_the_window_and_one_of_the_function_does_not(
    driver: WindowDriver,
) -> None:
    """It is the driver's, as BARs are; PCI resets it with the rest of configuration space."""
    driver.aim(CapabilityType.COMMON, CommonConfig.OFFSETS["device_status"], 1)
    driver.write_pci(driver.window + DATA, 1, 0)
    assert driver.read_pci(driver.window + OFFSET, 4) == CommonConfig.OFFSETS["device_status"]

    driver.reset_function()

    for field in (BAR, OFFSET, LENGTH):
        assert driver.read_pci(driver.window + field, 4) == 0


@pytest.mark.rule("PCI-D-26")
def test_a_doorbell_waits_for_bus_mastering_there_as_well(driver: WindowDriver) -> None:
    driver.start(VERSION_1)
    driver.write_pci(pci.COMMAND, 2, 0)
    ring = driver.queues[0]
    ring.add([b"abc"], [3])

    driver.kick(0)
    assert ring.collect() == []
    driver.write_pci(pci.COMMAND, 2, pci.Command.BUS_MASTER)

    assert ring.collect()[0].data == b"abc"


@pytest.mark.rule("PCI-D-26")
def test_bar_and_window_show_the_same_registers(bench: DeviceBench) -> None:
    """Every byte, word and dword of every structure but ISR, whose reading changes it."""
    by_window, by_bar = window_driver(bench).probe(), bench.driver.probe()
    for kind in (CapabilityType.COMMON, CapabilityType.DEVICE, CapabilityType.NOTIFY):
        for size in (1, 2, 4):
            for offset in range(0, 72, size):
                assert by_window.read(kind, offset, size) == by_bar.read(kind, offset, size)
