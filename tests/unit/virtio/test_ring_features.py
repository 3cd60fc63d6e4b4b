"""The transport's features, driven through registers, doorbells and rings (GEN-D-7 to GEN-D-10)."""

from collections.abc import Iterator
from itertools import product

import pytest

from minivmm.spec.virtio import DeviceStatus, Feature
from minivmm.spec.virtio_pci import NO_VECTOR, CapabilityType
from minivmm.testing.driver import DeviceBench
from minivmm.testing.echo import EchoDevice
from minivmm.testing.packed_ring import PackedDriver
from minivmm.testing.ring import SplitDriver
from minivmm.virtio.options import VirtioOptions

SWITCHES = {
    "packed": Feature.RING_PACKED,
    "event_idx": Feature.EVENT_IDX,
    "indirect_desc": Feature.INDIRECT_DESC,
    "in_order": Feature.IN_ORDER,
    "notification_data": Feature.NOTIFICATION_DATA,
    "notif_config_data": Feature.NOTIF_CONFIG_DATA,
    "queue_reset": Feature.RING_RESET,
    "iommu_platform": Feature.ACCESS_PLATFORM,
}
VERSION_1 = Feature.VERSION_1.mask


def echo(**options: object) -> EchoDevice:
    device = EchoDevice()
    device.options = VirtioOptions(**options)  # type: ignore[arg-type]
    return device


@pytest.fixture
def bench() -> Iterator[DeviceBench]:
    """Everything is offered, and doorbells come as exits."""
    with DeviceBench(echo(**dict.fromkeys(SWITCHES, True), ioeventfd=False)) as made:
        yield made


def broken(bench: DeviceBench) -> bool:
    return DeviceStatus.NEEDS_RESET in bench.driver.status


# -- what is offered -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("wanted", [False, True])
def test_each_switch_offers_its_feature_and_nothing_else(name: str, wanted: bool) -> None:
    base = VirtioOptions(**{name: not wanted}).ring_features
    with DeviceBench(echo(**{name: wanted})) as bench:
        offered = bench.driver.probe().offered_features() & ~1
    assert offered ^ base == SWITCHES[name].mask
    assert bool(offered & SWITCHES[name].mask) is wanted


@pytest.mark.rule("GEN-D-3")
@pytest.mark.parametrize("chosen", list(product([False, True], repeat=6)))
def test_every_combination_of_ring_features_works(chosen: tuple[bool, ...]) -> None:
    """GEN-D-3: any subset of what is offered is accepted, and requests come through on it."""
    names = list(SWITCHES)[:6]
    features = VERSION_1
    for name, wanted in zip(names, chosen, strict=True):
        features |= SWITCHES[name].mask if wanted else 0
    with DeviceBench(echo(**dict.fromkeys(SWITCHES, True))) as bench:
        driver = bench.driver.start(features)
        kind = PackedDriver if features & Feature.RING_PACKED.mask else SplitDriver
        assert isinstance(driver.queues[0], kind)
        for n in range(70):  # more than a lap
            message = n.to_bytes(2, "little")
            assert driver.request(0, message, 2) == message
        assert not bench.events("broken")
        assert len(bench.irq.take()) == 70


# -- queue sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("packed", "size"), [(True, 100), (True, 1), (True, 32768), (False, 1)])
def test_queue_size_option_is_what_the_driver_sees(packed: bool, size: int) -> None:
    with DeviceBench(echo(packed=packed, queue_size=size)) as bench:
        driver = bench.driver.start()
        for index in range(2):
            assert driver.queues[index].size == size
            ring = driver.queues[index]
            ring.add([b"abc"], [3], direct=0)
            driver.kick(index)
            assert ring.collect()[0].data == b"abc"


@pytest.mark.rule("PCI-D-16")
def test_without_packed_rings_the_size_is_a_power_of_two() -> None:
    """PCI-D-16: before FEATURES_OK, and for drivers that turn RING_PACKED down."""
    with DeviceBench(echo(packed=True, queue_size=100)) as bench:
        driver = bench.driver.probe()
        assert driver.get("queue_size") == 64
        driver.negotiate()
        assert driver.get("queue_size") == 100
        driver.reset()
        assert driver.get("queue_size") == 64
        driver.negotiate(VERSION_1)
        assert driver.get("queue_size") == 64


@pytest.mark.parametrize("size", [0, 101, 0xFFFF])
def test_packed_size_that_is_too_large_or_nothing_breaks_the_device(size: int) -> None:
    with DeviceBench(echo(packed=True, queue_size=100)) as bench:
        driver = bench.driver.probe()
        driver.negotiate()
        driver.set("queue_size", size)
        assert driver.get("queue_size") == 100
        driver.setup_queue(0)
        driver.add_status(DeviceStatus.DRIVER_OK)
        assert broken(bench)


# -- doorbells -------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_doorbells_of_every_kind_are_proper(
    bench: DeviceBench, named: bool, told: bool, packed: bool
) -> None:
    """PCI-V-9."""
    features = VERSION_1 | Feature.RING_PACKED.mask * packed
    features |= Feature.NOTIF_CONFIG_DATA.mask * named | Feature.NOTIFICATION_DATA.mask * told
    driver = bench.driver.start(features)
    for index in (0, 1, 0):
        assert driver.request(index, b"ring", 4) == b"ring"
    assert not bench.events("odd-doorbell")


def test_doorbells_of_both_widths_are_bound_if_data_is_offered() -> None:
    """PCI-D-18: a driver may turn NOTIFICATION_DATA down, and then writes two bytes."""
    with DeviceBench(echo(notification_data=True)) as bench:
        driver = bench.driver.probe()
        base = driver.address(CapabilityType.NOTIFY)
        assert set(bench.doorbells.bound) == {
            (base + at, width) for at in (0, 4) for width in (2, 4)
        }
        area = driver.structures[CapabilityType.NOTIFY]
        assert area.offset % 4 == area.multiplier % 4 == 0
        assert area.length >= 4 + 4


def test_without_ioeventfd_doorbells_are_exits(bench: DeviceBench) -> None:
    driver = bench.driver.start()
    assert bench.doorbells.bound == {}
    assert driver.request(0, b"exit", 4) == b"exit"


@pytest.mark.rule("SPL-D-10")
@pytest.mark.parametrize(
    ("features", "width", "value"),
    [
        (0, 2, 1),  # another queue's name
        (0, 4, 0),  # too wide
        (Feature.NOTIFICATION_DATA.mask, 2, 0),  # too narrow
        (Feature.NOTIF_CONFIG_DATA.mask, 2, 0),  # the index, not the data
    ],
)
def test_odd_doorbell_is_traced_and_tolerated(
    bench: DeviceBench, features: int, width: int, value: int
) -> None:
    """SPL-D-10; what it says is not used, so nothing depends on it."""
    driver = bench.driver.start(VERSION_1 | features)
    driver.queues[0].add([b"odd"], [3])
    driver.write(CapabilityType.NOTIFY, 0, width, value)
    assert driver.queues[0].collect()[0].data == b"odd"
    assert [event.fields["queue"] for event in bench.events("odd-doorbell")] == [0]


def test_lies_about_the_ring_in_a_doorbell_change_nothing(bench: DeviceBench) -> None:
    driver = bench.driver.start(VERSION_1 | Feature.NOTIFICATION_DATA.mask)
    driver.queues[0].add([b"true"], [4])
    driver.write(CapabilityType.NOTIFY, 0, 4, 0xFFFF << 16)
    assert [used.data for used in driver.queues[0].collect()] == [b"true"]
    assert not broken(bench)


@pytest.mark.parametrize(("offset", "width"), [(0, 1), (2, 2), (1, 2), (8, 2), (0, 8), (4095, 1)])
def test_writes_that_are_no_doorbells_are_dropped(
    bench: DeviceBench, offset: int, width: int
) -> None:
    driver = bench.driver.start()
    driver.queues[0].add([b"x"], [1])
    driver.write(CapabilityType.NOTIFY, offset, width, 0)
    assert driver.queues[0].collect() == []


def test_notif_config_data_is_there_only_if_negotiated(bench: DeviceBench) -> None:
    driver = bench.driver.probe()
    assert driver.get("queue_notif_config_data") == 0
    driver.negotiate()
    names = []
    for index in range(3):
        driver.set("queue_select", index)
        names.append(driver.get("queue_notif_config_data"))
    assert names[2] == 0  # no such queue
    assert len(set(names)) == 3


# -- queue reset -----------------------------------------------------------------------------------


@pytest.mark.rule("PCI-D-14", "GEN-D-7")
@pytest.mark.parametrize("packed", [False, True])
def test_reset_queue_is_as_new_and_the_other_one_works_on(bench: DeviceBench, packed: bool) -> None:
    """PCI-D-14, GEN-D-7."""
    features = VERSION_1 | Feature.RING_RESET.mask | Feature.RING_PACKED.mask * packed
    driver = bench.driver.start(features)
    old = driver.queues[0]
    assert driver.request(0, b"old", 3) == b"old"
    bench.irq.take()
    driver.reset_queue(0)
    assert driver.get("queue_reset") == driver.get("queue_enable") == driver.get("queue_desc") == 0
    assert driver.get("queue_size") == 64
    assert driver.get("queue_msix_vector") == NO_VECTOR
    old.add([b"late"], [4])
    driver.kick(0)
    assert old.collect() == []
    assert driver.request(1, b"other", 5) == b"other"
    assert bench.irq.take() == [2]


@pytest.mark.rule("PCI-D-14", "GEN-D-8")
@pytest.mark.parametrize("packed", [False, True])
def test_queue_starts_again_with_another_size_and_place(bench: DeviceBench, packed: bool) -> None:
    """GEN-D-8; what was in the ring before it is enabled is looked at."""
    features = VERSION_1 | Feature.RING_RESET.mask | Feature.RING_PACKED.mask * packed
    driver = bench.driver.start(features)
    for size in (4, 16, 2):
        driver.reset_queue(0)
        ring = driver.setup_queue(0, size)
        assert (driver.get("queue_reset"), driver.get("queue_enable")) == (0, 1)
        for n in range(2 * size):
            assert driver.request(0, bytes([n]), 1) == bytes([n])
        assert ring.size == size


def test_bad_place_after_a_queue_reset_breaks_the_device_at_once(bench: DeviceBench) -> None:
    driver = bench.driver.start()
    driver.reset_queue(0)
    driver.set("queue_desc", 0xFEE00000)
    assert not broken(bench)
    driver.set("queue_enable", 1)
    assert broken(bench)


@pytest.mark.parametrize("value", [0, 2, 0xFFFF])
def test_queue_reset_takes_nothing_but_1(bench: DeviceBench, value: int) -> None:
    driver = bench.driver.start()
    driver.set("queue_select", 0)
    driver.set("queue_reset", value)
    assert driver.request(0, b"still", 5) == b"still"


def test_queue_reset_and_late_enabling_have_to_be_negotiated(bench: DeviceBench) -> None:
    driver = bench.driver.probe()
    driver.negotiate(VERSION_1)
    driver.setup_queue(0)
    driver.add_status(DeviceStatus.DRIVER_OK)
    driver.reset_queue(0)
    assert driver.get("queue_enable") == 1
    driver.set("queue_select", 1)
    driver.set("queue_enable", 1)
    assert driver.get("queue_enable") == 0


def test_queue_that_does_not_exist_cannot_be_reset(bench: DeviceBench) -> None:
    driver = bench.driver.start()
    driver.reset_queue(2)
    assert not bench.events("queue-reset")


class Holder(EchoDevice):
    """Keeps what it is given, and is told to forget it."""

    def __init__(self) -> None:
        super().__init__()
        self.forgotten: list[int] = []

    def forget_queue(self, index: int) -> None:
        self.forgotten.append(index)


def test_device_model_is_told_of_a_queue_reset_while_it_runs() -> None:
    device = Holder()
    with DeviceBench(device) as bench:
        driver = bench.driver.start()
        driver.reset_queue(1)
        assert device.forgotten == [1]
        driver.reset()
        driver.negotiate()
        driver.setup_queue(0)
        driver.reset_queue(0)  # before DRIVER_OK the model has never heard of it
        assert device.forgotten == [1]
        assert driver.get("queue_enable") == 0
