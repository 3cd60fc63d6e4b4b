"""The virtio-pci function: identity, capabilities, ISR, vectors, doorbells, the PCI_CFG window."""

from collections.abc import Iterator

import pytest

from minivmm.spec import pci, virtio_pci
from minivmm.spec.virtio_pci import CapabilityType, CommonConfig
from minivmm.testing.driver import MESSAGE_ADDRESS, DeviceBench
from minivmm.testing.echo import EchoDevice
from minivmm.virtio.device import DeviceTraits


@pytest.fixture
def echo() -> EchoDevice:
    return EchoDevice()


@pytest.fixture
def bench(echo: EchoDevice) -> Iterator[DeviceBench]:
    with DeviceBench(echo) as made:
        yield made


def entry(vector: int, *, masked: bool = False) -> pci.MsixEntry:
    return pci.MsixEntry(MESSAGE_ADDRESS, 0, vector, int(masked))


# -- discovery -------------------------------------------------------------------------------------


@pytest.mark.rule("PCI-D-2", "PCI-D-3")
def test_identity(bench: DeviceBench) -> None:
    driver = bench.driver
    assert driver.read_pci(0, 4) == (0x1040 + 42) << 16 | 0x1AF4
    assert driver.read_pci(8, 1) >= 1
    assert driver.read_pci(8, 4) >> 8 == 0x00FF00
    assert driver.read_pci(0x2C, 2) == 0x1AF4
    assert driver.read_pci(0x2E, 2) >= 0x40
    assert driver.read_pci(0x0E, 1) == 0
    assert driver.read_pci(0x3D, 1) == 1  # INTA#


@pytest.mark.rule("PCI-D-7", "PCI-D-8", "PCI-D-19", "PCI-D-23")
def test_every_structure_is_announced_inside_its_bar(bench: DeviceBench) -> None:
    found = bench.driver.probe().structures
    assert set(found) == set(CapabilityType)
    sizes = {bar.index: bar.size for bar in bench.function.bars}
    for kind, place in found.items():
        if kind != CapabilityType.PCI:
            assert place.offset % 4 == 0
            assert place.offset + place.length <= sizes[place.bar]
    assert found[CapabilityType.COMMON].length == CommonConfig.SIZE
    assert found[CapabilityType.DEVICE].length >= 56


def test_notification_area_has_room_for_every_queue(bench: DeviceBench) -> None:
    driver = bench.driver.probe()
    notify = driver.structures[CapabilityType.NOTIFY]
    for index in range(2):
        driver.set("queue_select", index)
        end = driver.get("queue_notify_off") * notify.multiplier + 2
        assert end <= notify.length


class Bare(EchoDevice):
    traits = DeviceTraits(device_id=4, name="bare", queue_sizes=(8,), config_size=0)


class Many(EchoDevice):
    traits = DeviceTraits(device_id=3, name="many", queue_sizes=(16,) * 26, config_size=12)


class Sharing(EchoDevice):
    traits = DeviceTraits(
        device_id=3, name="sharing", queue_sizes=(16,) * 4, config_size=12, vectors=2
    )


def test_device_without_configuration_has_no_device_structure() -> None:
    with DeviceBench(Bare()) as bench:
        assert CapabilityType.DEVICE not in bench.driver.probe().structures


@pytest.mark.rule("PCI-D-27")
@pytest.mark.parametrize(
    ("model", "vectors"), [(Bare, 2), (EchoDevice, 3), (Many, 27), (Sharing, 2)]
)
def test_one_vector_for_each_queue_and_one_for_changes_unless_fewer_are_wanted(
    model: type[EchoDevice], vectors: int
) -> None:
    with DeviceBench(model()) as bench:
        driver = bench.driver.probe()
        assert (driver.read_pci(driver.msix_capability + 2, 2) & 0x7FF) + 1 == vectors


def test_26_queues_work_each_with_its_own_vector() -> None:
    with DeviceBench(Many()) as bench:
        bench.driver.start()
        assert len(bench.doorbells.bound) == 26
        for index in range(26):
            assert bench.driver.request(index, b"abc", 3) == b"abc"
        assert bench.irq.take() == list(range(1, 27))


# -- registers -------------------------------------------------------------------------------------


def test_device_configuration_is_readable_at_every_width_and_alignment(
    bench: DeviceBench, echo: EchoDevice
) -> None:
    driver = bench.driver.probe()
    for size in (1, 2, 4, 8):
        for offset in range(16):
            expected = bytes(echo.config[offset : offset + size]).ljust(size, b"\0")
            got = driver.read(CapabilityType.DEVICE, offset, size)
            assert got.to_bytes(size, "little") == expected


def test_device_configuration_writes_reach_the_model(bench: DeviceBench, echo: EchoDevice) -> None:
    driver = bench.driver.probe()
    driver.write(CapabilityType.DEVICE, 2, 2, 0xBEEF)
    driver.write(CapabilityType.DEVICE, 6, 4, 0xFFFFFFFF)  # crosses the end: dropped
    assert echo.config == bytes([0, 1, 0xEF, 0xBE, 4, 5, 6, 7])


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_every_offset_of_every_structure_can_be_poked(bench: DeviceBench, width: int) -> None:
    driver = bench.driver.start()
    exact = {(offset, size) for offset, size, _ in CommonConfig.layout()}
    exact |= {(o + half, 4) for o, size, _ in CommonConfig.layout() if size == 8 for half in (0, 4)}
    for offset in range(CommonConfig.SIZE + 8):
        value = driver.read(CapabilityType.COMMON, offset, width)
        assert 0 <= value < 1 << 8 * width
        if (offset, width) not in exact:
            assert value == 0
    for kind in (CapabilityType.ISR, CapabilityType.DEVICE, CapabilityType.NOTIFY):
        for offset in range(256):
            assert 0 <= driver.read(kind, offset, width) < 1 << 8 * width
    for kind in CapabilityType:
        if kind != CapabilityType.PCI:
            for offset in range(72):
                driver.write(kind, offset, width, (1 << 8 * width) - 1)
    bench.driver.start()
    assert bench.driver.request(0, b"fine", 4) == b"fine"


def test_read_only_registers_ignore_writes(bench: DeviceBench) -> None:
    driver = bench.driver.probe()
    names = ("device_feature", "num_queues", "config_generation", "queue_notify_off", "queue_reset")
    before = {name: driver.get(name) for name in names}
    for name in names:
        driver.set(name, 0xFF)
    assert {name: driver.get(name) for name in names} == before


def test_wide_write_of_a_64_bit_address(bench: DeviceBench) -> None:
    driver = bench.driver.probe()
    driver.write(CapabilityType.COMMON, CommonConfig.OFFSETS["queue_desc"], 8, 0x1122334455667788)
    assert driver.get("queue_desc") == 0x1122334455667788


# -- interrupts ------------------------------------------------------------------------------------


@pytest.mark.rule("PCI-D-29", "PCI-D-31")
def test_vectors_read_back_and_impossible_ones_do_not(bench: DeviceBench) -> None:
    driver = bench.driver.probe()
    for name in ("config_msix_vector", "queue_msix_vector"):
        for written, expected in ((2, 2), (3, 0xFFFF), (0, 0), (0x7FF, 0xFFFF), (0xFFFF, 0xFFFF)):
            driver.set(name, written)
            assert driver.get(name) == expected


def test_queue_interrupt_goes_to_the_queue_vector_without_isr(bench: DeviceBench) -> None:
    driver = bench.driver.start()
    driver.request(1, b"a", 1)
    assert bench.irq.take() == [2]
    assert driver.isr() == 0


@pytest.mark.rule("PCI-D-20")
def test_config_interrupt_sets_isr_even_with_msix(bench: DeviceBench, echo: EchoDevice) -> None:
    driver = bench.driver.start()
    echo.signals.config()
    assert bench.irq.take() == [0]
    assert (driver.isr(), driver.isr()) == (2, 0)


@pytest.mark.rule("PCI-D-28")
def test_events_may_share_a_vector(bench: DeviceBench, echo: EchoDevice) -> None:
    driver = bench.driver.start()
    for index in range(2):
        driver.set("queue_select", index)
        driver.set("queue_msix_vector", 0)
    driver.request(0, b"a", 1)
    driver.request(1, b"a", 1)
    echo.signals.config()
    assert bench.irq.take() == [0, 0, 0]


@pytest.mark.rule("PCI-D-28", "PCI-D-32")
def test_unmapped_events_do_not_interrupt(bench: DeviceBench, echo: EchoDevice) -> None:
    driver = bench.driver.start()
    driver.set("config_msix_vector", 0xFFFF)
    driver.set("queue_select", 0)
    driver.set("queue_msix_vector", 0xFFFF)
    driver.request(0, b"a", 1)
    echo.signals.config()
    assert bench.irq.take() == []
    assert driver.isr() == 2


def test_masked_config_change_is_delivered_exactly_once_at_unmask(
    bench: DeviceBench, echo: EchoDevice
) -> None:
    driver = bench.driver.start()
    driver.set_msix_entry(0, entry(0, masked=True))
    echo.signals.config()
    echo.signals.config()
    assert bench.irq.take() == []
    driver.set_msix_entry(0, entry(0))
    driver.set_msix_entry(0, entry(0))
    assert bench.irq.take() == [0]


def test_device_reset_drops_pending_messages(bench: DeviceBench, echo: EchoDevice) -> None:
    driver = bench.driver.start()
    driver.set_msix_entry(0, entry(0, masked=True))
    echo.signals.config()
    driver.reset()
    driver.set_msix_entry(0, entry(0))
    assert bench.irq.take() == []
    assert driver.isr() == 0


@pytest.mark.rule("PCI-D-21", "PCI-D-22")
def test_without_msix_isr_and_interrupt_status_tell(bench: DeviceBench, echo: EchoDevice) -> None:
    driver = bench.driver.start()
    driver.set_msix_control(0)
    driver.request(0, b"a", 1)
    echo.signals.config()
    assert driver.read_pci(pci.STATUS, 2) & pci.Status.INTERRUPT
    assert driver.isr() == 3
    assert not driver.read_pci(pci.STATUS, 2) & pci.Status.INTERRUPT
    assert bench.irq.take() == []


# -- doorbells and BARs ----------------------------------------------------------------------------


def test_doorbells_are_bound_where_the_driver_will_ring(bench: DeviceBench) -> None:
    assert bench.doorbells.bound == {}
    driver = bench.driver.probe()
    base = driver.address(CapabilityType.NOTIFY)
    assert set(bench.doorbells.bound) == {(base, 2), (base + 4, 2)}


def test_doorbells_follow_the_bar(bench: DeviceBench) -> None:
    driver = bench.driver.start()
    old = driver.address(CapabilityType.NOTIFY)
    driver.write_pci(0x14, 4, (bench.driver.bar_address(0) >> 32) + 1)
    assert driver.address(CapabilityType.NOTIFY) == old + (1 << 32)
    assert (old, 2) not in bench.doorbells.bound
    assert driver.request(0, b"moved", 5) == b"moved"


def test_doorbells_are_released_with_memory_space(bench: DeviceBench) -> None:
    driver = bench.driver.start()
    driver.write_pci(pci.COMMAND, 2, pci.Command.BUS_MASTER)
    assert bench.doorbells.bound == {}


def test_doorbell_rings_only_its_own_queue(bench: DeviceBench, echo: EchoDevice) -> None:
    driver = bench.driver.start()
    echo.handled.clear()
    driver.write(CapabilityType.NOTIFY, 4, 2, 0xFFFF)
    assert echo.handled == [1]


# -- the PCI_CFG window ----------------------------------------------------------------------------


class PciWindow:
    """Accesses BAR 0 by configuration space only, as a BIOS without memory space would."""

    def __init__(self, bench: DeviceBench) -> None:
        self.driver = bench.driver
        at = self.driver.read_pci(pci.CAPABILITIES, 1)
        while self.driver.read_pci(at + 3, 1) != CapabilityType.PCI:
            at = self.driver.read_pci(at + 1, 1)
        self.at = at

    def aim(self, offset: int, size: int, bar: int = 0) -> None:
        fields = virtio_pci.WindowCapability.OFFSETS
        self.driver.write_pci(self.at + fields["bar"], 1, bar)
        self.driver.write_pci(self.at + fields["offset"], 4, offset)
        self.driver.write_pci(self.at + fields["size"], 4, size)

    def read(self, size: int) -> int:
        return self.driver.read_pci(self.at + virtio_pci.WindowCapability.OFFSETS["data"], size)

    def write(self, size: int, value: int) -> None:
        self.driver.write_pci(self.at + virtio_pci.WindowCapability.OFFSETS["data"], size, value)


@pytest.mark.rule("PCI-D-26")
def test_window_reads_and_writes_with_memory_space_off(bench: DeviceBench) -> None:
    window = PciWindow(bench)
    window.aim(CommonConfig.OFFSETS["num_queues"], 2)
    assert window.read(2) == 2
    window.aim(CommonConfig.OFFSETS["device_status"], 1)
    window.write(1, 1)
    assert bench.function.transport.status == 1
    assert window.read(1) == 1


@pytest.mark.rule("PCI-D-26")
def test_window_can_ring_a_doorbell(bench: DeviceBench, echo: EchoDevice) -> None:
    driver = bench.driver.start()
    echo.handled.clear()
    window = PciWindow(bench)
    window.aim(driver.structures[CapabilityType.NOTIFY].offset + 4, 2)
    window.write(2, 1)
    assert echo.handled == [1]


@pytest.mark.rule("PCI-D-26")
def test_window_reads_only_as_many_bytes_as_its_length(bench: DeviceBench) -> None:
    window = PciWindow(bench)
    window.write(4, 0x5A5A5A5A)
    window.aim(CommonConfig.OFFSETS["num_queues"], 2)
    assert window.read(4) == 0x5A5A0002


@pytest.mark.rule("PCI-D-26")
def test_any_byte_of_the_data_starts_an_access(bench: DeviceBench) -> None:
    """PCI-D-26: the whole length is read or written, whichever part the driver touches."""
    window = PciWindow(bench)
    data = window.at + virtio_pci.WindowCapability.OFFSETS["data"]
    window.aim(CommonConfig.OFFSETS["queue_desc"], 4)
    bench.driver.write_pci(data + 2, 2, 0xABCD)
    assert bench.driver.probe().get("queue_desc") == 0xABCD0000
    bench.driver.set("queue_desc", 0x12345678)
    assert bench.driver.read_pci(data + 3, 1) == 0x12


@pytest.mark.rule("PCI-D-22", "PCI-D-26")
def test_window_reads_isr_and_so_clears_it(bench: DeviceBench, echo: EchoDevice) -> None:
    driver = bench.driver.start()
    echo.signals.config()
    window = PciWindow(bench)
    window.aim(driver.structures[CapabilityType.ISR].offset, 1)
    assert (window.read(1), window.read(1)) == (2, 0)


def test_window_reaches_the_other_bar_as_well(bench: DeviceBench) -> None:
    window = PciWindow(bench)
    window.aim(12, 4, bar=2)
    assert window.read(4) == 1
    window.write(4, 0)
    assert bench.function.msix.read(12, 4) == 0


def test_window_fields_read_back_and_the_rest_is_fixed(bench: DeviceBench) -> None:
    window = PciWindow(bench)
    fixed = [bench.driver.read_pci(window.at + at, 1) for at in (0, 1, 2, 3, 5, 6, 7)]
    bench.driver.write_pci(window.at, 4, 0xFFFFFFFF)
    bench.driver.write_pci(window.at + 4, 4, 0xFFFFFF02)
    window.aim(0x1234, 2, bar=2)
    assert [bench.driver.read_pci(window.at + at, 1) for at in (0, 1, 2, 3, 5, 6, 7)] == fixed
    assert bench.driver.read_pci(window.at + 4, 1) == 2
    assert bench.driver.read_pci(window.at + 8, 4) == 0x1234
    assert bench.driver.read_pci(window.at + 12, 4) == 2


@pytest.mark.parametrize(
    ("offset", "size", "bar"),
    [
        (0x12, 3, 0),
        (0x12, 0, 0),
        (0x12, 8, 0),
        (0x13, 2, 0),
        (0x12, 2, 1),
        (0x1000, 4, 2),
        (0x12, 2, 3),
        (0x12, 2, 255),
        (0x4000, 2, 0),
        (0xFFFFFFFE, 2, 0),
    ],
)
def test_window_ignores_impossible_targets(
    bench: DeviceBench, offset: int, size: int, bar: int
) -> None:
    window = PciWindow(bench)
    window.aim(offset, size, bar)
    window.write(4, 0x5A5A5A5A)
    assert window.read(4) == 0x5A5A5A5A
    assert bench.function.transport.status == 0


def test_inspect_is_plain_data(bench: DeviceBench) -> None:
    bench.driver.start()
    tree = bench.function.inspect()
    assert tree["model"] == {"id": "echo0", "type": "echo"}
    assert "transport" in tree
    assert "msix" in tree
