"""The hostile catalogue (reference C.7), life: endless work, and changes while work is done."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.spec.pci import COMMAND, Command
from minivmm.spec.virtio import DescriptorFlags, DeviceStatus, Feature
from minivmm.spec.virtio_mem import BlockState, RequestType
from minivmm.spec.virtio_pci import CapabilityType, CommonConfig
from minivmm.testing.mem_ordeal import BLOCK, REGION, MemOrdeal
from minivmm.testing.ordeal import Outcome
from minivmm.testing.raw_ring import Raw
from minivmm.testing.slow_host import SlowHost
from minivmm.virtio.queue import ring as ring_module
from minivmm.virtio.queue.ring import BURST_CHAINS, BURST_DESCRIPTORS

ANSWERED, IGNORED, BROKEN = Outcome.ANSWERED, Outcome.IGNORED, Outcome.BROKEN
TABLE = int(DescriptorFlags.INDIRECT)
DRIVER_OK, FAILED = DeviceStatus.DRIVER_OK, DeviceStatus.FAILED

MakeOrdeal = Callable[..., MemOrdeal]


# -- endless work ----------------------------------------------------------------------------------


def test_a_guest_that_never_stops_asking(
    ordeal: MemOrdeal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another CPU makes a request available for each that is answered, for ever.

    So many are done per turn of the event loop; the rest waits, and a reset ends it.
    """
    asked, reply = ordeal.question(), ordeal.room()
    transport, raw = ordeal.bench.function.transport, ordeal.raw
    turns: list[int] = []

    def refill() -> None:
        if transport.live and ordeal.raw is raw:
            raw.offer(asked, reply)
            raw.used()
            turns[-1] += 1

    def kick() -> None:
        turns.append(0)
        ordeal.kick()
        assert len(ordeal.bench.defer.waiting) == 1

    raw.offer(asked, reply)
    monkeypatch.setattr(ring_module, "full_fence", refill)
    kick()
    turns.append(0)
    assert ordeal.bench.defer.run(1) == 1
    turns.append(0)
    # The driver writes to its ring in this turn, which is not what the device is held to.
    raw.granted += [(getattr(raw.ring.layout, part), 4096) for part in ("descriptors", "driver")]
    ordeal.check(None, act=lambda: None)
    assert all(0 < count <= 2 * BURST_CHAINS for count in turns[:2]), turns


def test_longest_chains_in_a_full_ring(make_ordeal: MakeOrdeal) -> None:
    """128 tables of 1024 entries: bounded by descriptors, not by chains."""
    ordeal = make_ordeal()
    reply = ordeal.room()
    table = ordeal.raw.table(ordeal.question(), *[Raw(0x8000, 1)] * 1022, reply)
    gpa = ordeal.put(table)
    ordeal.raw.grant(reply)
    for _ in range(128):
        ordeal.raw.offer(Raw(gpa, len(table), TABLE))
    ordeal.kick()
    assert len(ordeal.raw.used()) == BURST_DESCRIPTORS // 1024
    assert len(ordeal.bench.defer.waiting) == 1
    ordeal.check(ANSWERED)


def test_kicks_do_not_add_up(ordeal: MemOrdeal) -> None:
    """A flood of doorbells while work waits for its turn leaves one turn to come, not many."""
    reply = ordeal.room()
    table = ordeal.raw.table(ordeal.question(), *[Raw(0, 0)] * 1022, reply)
    gpa = ordeal.put(table)
    ordeal.raw.grant(reply)
    for _ in range(100):
        ordeal.raw.offer(Raw(gpa, len(table), TABLE))
    for _ in range(10):
        ordeal.kick()
        assert len(ordeal.bench.defer.waiting) == 1
    ordeal.check(ANSWERED)


# -- changes while the host works on a request -----------------------------------------------------


@pytest.fixture
def host() -> SlowHost:
    return SlowHost()


@pytest.fixture
def busy(make_ordeal: MakeOrdeal, host: SlowHost) -> MemOrdeal:
    """The host takes 32 MiB back, which takes it long; another request waits in the ring."""
    ordeal = make_ordeal()
    device = ordeal.bench.device
    assert isinstance(device, VirtioMem)
    ordeal.plug(0, 16)
    device.use(host)
    ordeal.raw.offer(ordeal.question(RequestType.UNPLUG, 0, 16), ordeal.room())
    ordeal.raw.offer(ordeal.question(), ordeal.room())
    ordeal.kick()
    assert not host.over
    return ordeal


def late(host: SlowHost, *before: Callable[[], object]) -> Callable[[], None]:
    """`before`, and then the host is done, whoever wants to hear it."""

    def act() -> None:
        for step in before:
            step()
        host.finish()

    return act


def test_nothing_happens_meanwhile(busy: MemOrdeal, host: SlowHost) -> None:
    used = busy.check(ANSWERED, act=late(host), changes=True)
    assert [length for _, length in used] == [10, 10]


def test_device_reset_meanwhile(busy: MemOrdeal, host: SlowHost) -> None:
    """The request is finished, but its answer has no place any more (GEN-D-5)."""
    busy.raw.granted.clear()
    reset = late(host, lambda: busy.driver.set("device_status", 0))
    busy.check(None, act=reset, changes=True)


def test_queue_reset_meanwhile(busy: MemOrdeal, host: SlowHost) -> None:
    busy.raw.granted.clear()
    busy.check(IGNORED, act=late(host, lambda: busy.driver.set("queue_reset", 1)), changes=True)


def test_driver_fails_meanwhile(busy: MemOrdeal, host: SlowHost) -> None:
    busy.raw.granted.clear()
    busy.check(IGNORED, act=late(host, lambda: busy.driver.add_status(FAILED)))


def test_bus_mastering_ends_meanwhile(busy: MemOrdeal, host: SlowHost) -> None:
    """Nothing is written while it is off; what is over waits until it is on again."""
    granted, busy.raw.granted = busy.raw.granted, []
    ram = busy.bench.memory.read(0, 16 << 20)
    busy.driver.write_pci(COMMAND, 2, Command.MEMORY_SPACE)
    host.finish()
    assert busy.bench.memory.read(0, 16 << 20) == ram
    busy.raw.granted = granted
    on = Command.MEMORY_SPACE | Command.BUS_MASTER
    busy.check(ANSWERED, act=lambda: busy.driver.write_pci(COMMAND, 2, on), changes=True)


def test_registers_of_a_live_queue_meanwhile(busy: MemOrdeal, host: SlowHost) -> None:
    """Frozen: size, addresses and features are those that were enabled."""

    def scribble() -> None:
        for name in ("queue_size", "queue_desc", "queue_driver", "queue_device", "queue_enable"):
            busy.driver.set(name, 0)
        for name in ("driver_feature_select", "driver_feature"):
            busy.driver.set(name, 0)

    used = busy.check(ANSWERED, act=late(host, scribble), changes=True)
    assert len(used) == 2


def test_a_bad_request_behind_it(busy: MemOrdeal, host: SlowHost) -> None:
    """It breaks the device once its turn comes; the one before has been answered by then."""
    busy.raw.offer(Raw(1 << 63, 24), busy.room())
    busy.check(BROKEN, "not in guest RAM", act=late(host), changes=True)


def test_buffers_in_the_blocks_that_are_leaving(busy: MemOrdeal, host: SlowHost) -> None:
    """They count as unplugged from the moment on at which the host begins to take them."""
    busy.raw.offer(busy.question(), Raw(REGION + BLOCK, 10, int(DescriptorFlags.WRITE)))
    busy.check(BROKEN, "unplugged memory", act=late(host), changes=True)


# -- status and registers in any order -------------------------------------------------------------


@pytest.mark.parametrize("bits", [0x10, 0x20, 0x40, 0x70])
def test_status_bits_that_are_not_the_drivers(ordeal: MemOrdeal, bits: int) -> None:
    status = ordeal.driver.status
    reply = ordeal.room()
    ordeal.driver.set("device_status", int(status) | bits)
    assert ordeal.driver.status == status
    ordeal.raw.offer(ordeal.question(), reply)
    ordeal.expect_answer(reply)


@pytest.mark.parametrize("bits", [0xFF, 0x8F, 0x80, 0x84])
def test_failed_with_anything_else(ordeal: MemOrdeal, bits: int) -> None:
    ordeal.driver.set("device_status", bits)
    ordeal.raw.offer(ordeal.question(), ordeal.room())
    ordeal.check(IGNORED)


def test_all_status_bits_at_once(ordeal: MemOrdeal) -> None:
    """No features, so FEATURES_OK is refused, and DRIVER_OK with it."""
    ordeal.driver.reset()
    ordeal.check(None, act=lambda: ordeal.driver.set("device_status", 0x0F))


def test_driver_ok_without_a_queue(ordeal: MemOrdeal) -> None:
    ordeal.begin()
    ordeal.check(None, act=lambda: ordeal.driver.add_status(DRIVER_OK))


def test_broken_devices_refuse_everything_but_a_reset(ordeal: MemOrdeal) -> None:
    ordeal.raw.offer(Raw(1 << 63, 24))

    def misbehave_on() -> None:
        ordeal.kick()
        for status in (0x0F, 0x8F, 0x4F, 0x04):
            ordeal.driver.set("device_status", status)
        ordeal.driver.set("queue_enable", 1)
        ordeal.driver.set("queue_reset", 1)
        ordeal.driver.set("queue_desc", 0x8000)
        ordeal.driver.set("queue_enable", 1)
        ordeal.kick()

    ordeal.check(BROKEN, "not in guest RAM", act=misbehave_on)


def test_queue_reset_heals_no_broken_device(ordeal: MemOrdeal) -> None:
    def hope() -> None:
        ordeal.raw.offer(Raw(1 << 63, 24))
        ordeal.kick()
        ordeal.driver.reset_queue(0)
        ordeal.driver.setup_queue(0)
        ordeal.follow_ring()
        ordeal.raw.granted.append((0, 16 << 20))
        ordeal.raw.offer(ordeal.question(), ordeal.room())
        ordeal.kick()
        assert ordeal.raw.used() == []

    ordeal.check(BROKEN, "not in guest RAM", act=hope)


def test_queue_reset_flood(ordeal: MemOrdeal) -> None:
    def flood() -> None:
        for _ in range(1000):
            ordeal.driver.set("queue_reset", 1)

    ordeal.check(IGNORED, act=flood)


@pytest.mark.parametrize("value", [0, 1, 0xFFFF])
def test_every_register_written_while_live(ordeal: MemOrdeal, value: int) -> None:
    """Registers that may be written have effects, the others none; never an exception."""

    def scribble() -> None:
        for offset, width, name in CommonConfig.layout():
            if name != "device_status":
                for size in (1, 2, 4, 8):
                    ordeal.driver.write(CapabilityType.COMMON, offset, size, value)
                assert ordeal.driver.read(CapabilityType.COMMON, offset, width) >= 0

    ordeal.check(IGNORED, act=scribble)


@pytest.mark.parametrize("features", [0, 1, (1 << 128) - 1, Feature.RING_PACKED.mask])
def test_features_that_nobody_offered(ordeal: MemOrdeal, features: int) -> None:
    """FEATURES_OK stays clear; queues and DRIVER_OK are refused with it."""

    def insist() -> None:
        ordeal.driver.reset()
        assert not ordeal.driver.negotiate(features)
        ordeal.driver.set("queue_desc", 0x8000)
        ordeal.driver.set("queue_enable", 1)
        ordeal.driver.add_status(DRIVER_OK)
        assert DRIVER_OK not in ordeal.driver.status
        assert ordeal.driver.get("queue_enable") == 0
        ordeal.kick()

    ordeal.check(None, act=insist)
    assert not ordeal.bench.events("broken")


def test_blocks_survive_all_of_it(ordeal: MemOrdeal) -> None:
    """MEM-D-13: what a driver did wrong is no reason to take memory from the next one."""
    ordeal.plug(3, 2)
    ordeal.bench.memory.write(REGION + 4 * BLOCK, b"precious")
    ordeal.raw.offer(Raw(1 << 63, 24))
    ordeal.kick()
    assert DeviceStatus.NEEDS_RESET in ordeal.driver.status
    ordeal.restart()
    device = ordeal.bench.device
    assert isinstance(device, VirtioMem)
    assert device.blocks.state(3, 2) is BlockState.PLUGGED
    assert ordeal.bench.memory.read(REGION + 4 * BLOCK, 8) == b"precious"
