"""What holds for every virtio device (reference B.5, GEN-D), shown on all of ours.

Rules that the transport's own tests prove have their marks there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from minivmm.spec.virtio import DeviceStatus, Feature
from minivmm.spec.virtio_pci import CapabilityType
from minivmm.testing.conversations import Kind
from minivmm.testing.driver import DeviceBench
from minivmm.testing.echo import EchoDevice
from minivmm.units import MIB
from minivmm.virtio.options import VirtioOptions
from minivmm.virtio.queue.queue import VirtQueue

NAMES = ["mem", "blk", "rng", "balloon", "console"]
OFFERS: list[dict[str, bool]] = [
    {},
    {"packed": True},
    {"packed": True, "in_order": True, "notification_data": True, "notif_config_data": True},
    {"event_idx": False, "indirect_desc": False, "queue_reset": False},
    {"packed": True, "iommu_platform": True, "in_order": True},
]
SR_IOV, ADMIN_VQ, SUSPEND = 37, 41, 43

Make = Callable[..., DeviceBench]


@pytest.fixture
def make(device_kinds: dict[str, Kind]) -> Iterator[Make]:
    """make(name, **options of the transport): a bench whose driver has found the function."""
    benches: list[DeviceBench] = []

    def make(name: str, **options: object) -> DeviceBench:
        bench = DeviceBench(device_kinds[name].make(**options))
        bench.driver.probe()
        benches.append(bench)
        return bench

    yield make
    for bench in benches:
        bench.device.close()
        bench.close()


def ram(bench: DeviceBench) -> bytes:
    return bench.memory.read(0, 16 * MIB)


# -- before DRIVER_OK ------------------------------------------------------------------------------


@pytest.mark.rule("GEN-D-1")
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_consumed_or_notified_before_driver_ok(
    make: Make, name: str, packed: bool
) -> None:
    """Whatever waits in the rings, whichever bell is rung; then all of it is looked at."""
    bench = make(name, packed=packed)
    driver = bench.driver
    driver.reset()
    for index in range(driver.get("num_queues")):
        driver.kick(index, by_exit=True)
    driver.negotiate()
    driver.enable_msix()
    for index in range(driver.get("num_queues")):
        driver.setup_queue(index).add([bytes(24)], [64])
    bench.irq.take()
    before = ram(bench)
    for index in driver.queues:
        driver.kick(index)
        driver.kick(index, by_exit=True)
        bench.function.transport.queue(index)
    assert ram(bench) == before
    assert (bench.irq.take(), driver.isr()) == ([], 0)
    driver.add_status(DeviceStatus.DRIVER_OK)
    bench.defer.run()
    assert any(ring.collect() for ring in driver.queues.values())


@pytest.mark.rule("GEN-D-6")
@pytest.mark.parametrize("name", NAMES)
def test_configuration_is_readable_before_features_are_settled(make: Make, name: str) -> None:
    """Every byte of it, from the first moment on, as it is afterwards."""
    bench = make(name)
    driver, size = bench.driver, bench.device.traits.config_size
    if not size:
        assert CapabilityType.DEVICE not in driver.structures
        return
    driver.reset()
    fresh = driver.read_config(size)
    assert fresh == bench.device.config_space()
    for status in (DeviceStatus.ACKNOWLEDGE, DeviceStatus.DRIVER):
        driver.add_status(status)
        assert driver.read_config(size) == fresh
    driver.start()
    assert driver.read_config(size) == bench.device.config_space()


# -- features --------------------------------------------------------------------------------------


@pytest.mark.rule("GEN-D-3", "GEN-D-11")
@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_offered_is_known_and_stands_on_its_own(
    make: Make, name: str, offer: dict[str, bool]
) -> None:
    """VERSION_1; nothing reserved, legacy or beyond us; nothing that needs what is missing."""
    bench = make(name, **offer)
    offered = bench.driver.offered_features()
    known = sum(feature.mask for feature in Feature)
    assert offered & Feature.VERSION_1.mask
    assert offered >> 24 & ~(known >> 24) == 0
    for bit in (24, 27, 30, SR_IOV, ADMIN_VQ, SUSPEND):
        assert not offered >> bit & 1
    assert offered & (1 << 24) - 1 == bench.device.offered_features()
    assert offered >> 64 == 0
    assert bench.driver.get("admin_queue_index") == bench.driver.get("admin_queue_num") == 0


@pytest.mark.rule("GEN-D-3")
@pytest.mark.parametrize("name", NAMES)
def test_any_choice_of_what_is_offered_works(
    make: Make, name: str, device_kinds: dict[str, Kind]
) -> None:
    """Twenty at random, VERSION_1 always; the device then does its work with just those."""
    dice = random.Random(name)
    bench = make(name, **dict.fromkeys(["packed", "in_order", "notification_data"], True))
    offered = bench.driver.offered_features()
    multiport = 2 if name == "console" else 0  # what the conversation is about
    for _ in range(20):
        chosen = offered & dice.getrandbits(128) | Feature.VERSION_1.mask | multiport
        bench.driver.start(chosen)
        device_kinds[name].converse(bench)
        assert DeviceStatus.NEEDS_RESET not in bench.driver.status


@pytest.mark.rule("GEN-D-3")
@pytest.mark.parametrize("name", NAMES)
def test_any_bit_that_was_not_offered_is_refused(make: Make, name: str) -> None:
    bench = make(name)
    offered = bench.driver.offered_features()
    for bit in range(128):
        if not offered >> bit & 1:
            bench.driver.reset()
            assert not bench.driver.negotiate(offered | 1 << bit), bit
    bench.driver.reset()
    assert not bench.driver.negotiate(offered & ~Feature.VERSION_1.mask)


@pytest.mark.rule("GEN-D-4")
@pytest.mark.parametrize("name", NAMES)
def test_features_once_accepted_are_accepted_again(make: Make, name: str) -> None:
    """By reset after reset, with others in between, and after the device was broken."""
    bench = make(name)
    offered = bench.driver.offered_features()
    fewer = offered & ~Feature.EVENT_IDX.mask
    for features in (offered, fewer, offered, offered):
        bench.driver.reset()
        assert bench.driver.negotiate(features)
        assert not bench.driver.has(Feature.EVENT_IDX) or features == offered
    bench.driver.start(fewer)
    bench.memory.write(bench.driver.queues[0].layout.driver, b"\xff" * 4)
    bench.driver.kick(0)
    assert DeviceStatus.NEEDS_RESET in bench.driver.status
    bench.driver.reset()
    assert bench.driver.negotiate(fewer)


@pytest.mark.rule("GEN-D-10")
@pytest.mark.parametrize("name", NAMES)
def test_devices_see_memory_as_cpus_do(
    make: Make, name: str, device_kinds: dict[str, Kind]
) -> None:
    """So ACCESS_PLATFORM is not offered; if the user wants it, drivers may turn it down."""
    platform = Feature.ACCESS_PLATFORM.mask
    assert not VirtioOptions().ring_features & platform
    bench = make(name, iommu_platform=True)
    offered = bench.driver.offered_features()
    assert offered & platform
    for features in (offered, offered & ~platform):
        bench.driver.start(features)
        device_kinds[name].converse(bench)


@pytest.mark.rule("GEN-D-11")
@pytest.mark.parametrize("name", NAMES)
def test_functions_are_not_virtualized(make: Make, name: str) -> None:
    """No SR-IOV capability, which would be an extended one: behind byte 255 there is nothing."""
    driver = make(name).driver
    assert driver.read_pci(0x100, 4) in (0, 0xFFFFFFFF)


# -- reset -----------------------------------------------------------------------------------------


@pytest.mark.rule("GEN-D-5")
@pytest.mark.parametrize("name", NAMES)
def test_after_a_reset_rings_and_driver_are_left_alone(
    make: Make, name: str, packed: bool, device_kinds: dict[str, Kind]
) -> None:
    """Whatever waits in them, whoever rings: from device and host side."""
    bench = make(name, packed=packed)
    driver = bench.driver.start()
    device_kinds[name].converse(bench)
    for ring in driver.queues.values():
        ring.add([bytes(24)], [64])
    queues = list(driver.queues)
    driver.reset()
    assert driver.status == DeviceStatus(0)
    bench.irq.take()
    before = ram(bench)
    for index in queues:
        driver.kick(index)
        driver.kick(index, by_exit=True)
        bench.function.transport.queue(index)
    bench.function.transport.config()
    bench.defer.run()
    assert ram(bench) == before
    assert (bench.irq.take(), driver.isr()) == ([], 0)


@pytest.mark.rule("GEN-D-2")
@pytest.mark.parametrize("vectors", [None, 0], ids=["msix", "intx"])
def test_trouble_is_told_by_one_configuration_interrupt(
    make: Make, packed: bool, vectors: int | None
) -> None:
    bench = make("mem", packed=packed, vectors=vectors)
    driver = bench.driver.start()
    driver.queues[0].add([b"short"], [10])
    driver.kick(0)
    assert DeviceStatus.NEEDS_RESET in driver.status
    line = bench.irq.lines[17]  # of slot 1
    assert bench.irq.take() == ([0] if vectors is None else [])
    assert line.level is (vectors is not None)
    assert driver.isr() == 2
    assert not line.level
    driver.kick(0)
    assert (bench.irq.take(), driver.isr()) == ([], 0)


@pytest.mark.rule("GEN-D-2")
def test_trouble_before_driver_ok_is_not_told_by_an_interrupt(make: Make) -> None:
    """The status says so all the same, once a queue is found to lie nowhere."""
    bench = make("mem")
    driver = bench.driver
    driver.reset()
    driver.negotiate()
    driver.enable_msix()
    driver.set("config_msix_vector", 0)
    driver.set("queue_desc", 1 << 63)
    driver.set("queue_enable", 1)
    assert (bench.irq.take(), driver.isr()) == ([], 0)
    driver.add_status(DeviceStatus.DRIVER_OK)
    assert DeviceStatus.NEEDS_RESET in driver.status
    assert bench.irq.take() == [0]


# -- queue reset -----------------------------------------------------------------------------------


@pytest.mark.rule("GEN-D-7", "GEN-D-8")
@pytest.mark.parametrize("name", NAMES)
def test_each_queue_can_be_reset_and_placed_anew(
    make: Make, name: str, packed: bool, device_kinds: dict[str, Kind]
) -> None:
    """Its old ring stays as it is, and the new one serves, smaller and elsewhere."""
    bench = make(name, packed=packed)
    driver = bench.driver.start()
    old = dict(driver.queues)
    for index, ring in old.items():
        driver.reset_queue(index)
        assert [driver.get(name) for name in ("queue_enable", "queue_desc", "queue_reset")] == [
            0
        ] * 3
        ring.add([bytes(24)], [64])
        before, _ = ram(bench), bench.irq.take()
        driver.kick(index)
        assert ram(bench) == before
        assert bench.irq.take() == []
    for index in old:
        driver.setup_queue(index, 8)
    device_kinds[name].converse(bench)
    assert not bench.events("broken")


# -- order -----------------------------------------------------------------------------------------


class Backwards(EchoDevice):
    """Does what came last first."""

    def handle_queue(self, index: int, queue: VirtQueue) -> None:
        for chain in reversed(list(queue.chains())):
            chain.write(chain.read(chain.writable))
            queue.complete(chain, chain.writable)
        if queue.publish():
            self.signals.queue(index)


@pytest.mark.rule("GEN-D-9")
@pytest.mark.parametrize("in_order", [False, True])
def test_in_order_buffers_come_back_as_they_were_made_available(
    packed: bool, in_order: bool
) -> None:
    """Whatever a device model does first; without IN_ORDER that shows, which is allowed."""
    device = Backwards()
    device.options = VirtioOptions(packed=packed, in_order=in_order)
    with DeviceBench(device) as bench:
        driver = bench.driver.start()
        assert driver.has(Feature.IN_ORDER) is in_order
        ring = driver.queues[0]
        for _ in range(30):
            heads = [ring.add([bytes([n])] * 2, [2]) for n in range(5)]
            driver.kick(0)
            used = ring.collect()
            asked = range(5) if in_order else range(4, -1, -1)
            assert [(one.head, one.data) for one in used] == [
                (heads[n], bytes([n, n])) for n in asked
            ]
