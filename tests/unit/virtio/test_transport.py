"""Status machine, features, queues' life, kicks, errors and reset (reference B.5, B.7)."""

from collections.abc import Iterator

import pytest

from minivmm.errors import DeviceBroken
from minivmm.spec.pci import COMMAND, Command
from minivmm.spec.virtio import DeviceStatus, Feature
from minivmm.testing.driver import DeviceBench
from minivmm.testing.echo import EchoDevice
from minivmm.virtio.options import VirtioOptions
from minivmm.virtio.queue.queue import VirtQueue

OK = DeviceStatus.DRIVER_OK
VERSION_1 = Feature.VERSION_1.mask
RING_FEATURES = VirtioOptions().ring_features


@pytest.fixture
def echo() -> EchoDevice:
    return EchoDevice()


@pytest.fixture
def bench(echo: EchoDevice) -> Iterator[DeviceBench]:
    with DeviceBench(echo) as made:
        yield made


def broken(bench: DeviceBench) -> bool:
    return DeviceStatus.NEEDS_RESET in bench.driver.status


# -- status and features ---------------------------------------------------------------------------


def test_linux_sequence_reaches_driver_ok(bench: DeviceBench) -> None:
    bench.driver.start()
    assert bench.driver.status == DeviceStatus(0x0F)


def test_status_bits_cannot_be_cleared_one_by_one(bench: DeviceBench) -> None:
    bench.driver.start()
    bench.driver.set("device_status", DeviceStatus.ACKNOWLEDGE)
    assert bench.driver.status == DeviceStatus(0x0F)


def test_driver_cannot_set_needs_reset(bench: DeviceBench) -> None:
    bench.driver.probe().set("device_status", DeviceStatus.NEEDS_RESET | 1)
    assert bench.driver.status == DeviceStatus.ACKNOWLEDGE


@pytest.mark.rule("PCI-D-9")
def test_offered_features(bench: DeviceBench) -> None:
    assert bench.driver.probe().offered_features() == RING_FEATURES | 1
    bench.driver.set("device_feature_select", 0xFFFFFFFF)
    assert bench.driver.get("device_feature") == 0


@pytest.mark.rule("PCI-D-10")
def test_driver_features_read_back(bench: DeviceBench) -> None:
    driver = bench.driver.probe()
    driver.set("driver_feature_select", 1)
    driver.set("driver_feature", 1)
    driver.set("driver_feature_select", 0)
    assert driver.get("driver_feature") == 0
    driver.set("driver_feature_select", 1)
    assert driver.get("driver_feature") == 1


@pytest.mark.rule("GEN-D-3")
@pytest.mark.parametrize("features", [VERSION_1, VERSION_1 | 1, RING_FEATURES])
def test_valid_subsets_are_accepted(bench: DeviceBench, echo: EchoDevice, features: int) -> None:
    assert bench.driver.probe().negotiate(features)
    assert echo.features == features


@pytest.mark.rule("GEN-D-3")
@pytest.mark.parametrize(
    "features", [0, 1, VERSION_1 | 2, VERSION_1 | Feature.RING_PACKED.mask, VERSION_1 | 1 << 127]
)
def test_invalid_sets_leave_features_ok_clear(bench: DeviceBench, features: int) -> None:
    assert not bench.driver.probe().negotiate(features)
    assert bench.driver.status == DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER


def test_device_model_may_refuse_features(bench: DeviceBench, echo: EchoDevice) -> None:
    echo.acceptable = False
    assert not bench.driver.probe().negotiate()
    echo.acceptable = True
    assert bench.driver.negotiate()


def test_features_are_frozen_after_features_ok(bench: DeviceBench) -> None:
    driver = bench.driver.probe()
    driver.negotiate(VERSION_1)
    driver.set("driver_feature_select", 0)
    driver.set("driver_feature", 1)
    assert driver.get("driver_feature") == 0


def test_driver_ok_needs_features_ok(bench: DeviceBench) -> None:
    driver = bench.driver.probe()
    driver.add_status(DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER)
    driver.add_status(OK)
    assert OK not in driver.status


# -- queue registers -------------------------------------------------------------------------------


def test_queues_start_with_their_largest_size_and_disabled(bench: DeviceBench) -> None:
    driver = bench.driver.probe()
    assert driver.get("num_queues") == 2
    for index, size in enumerate((64, 16)):
        driver.set("queue_select", index)
        assert (driver.get("queue_size"), driver.get("queue_enable")) == (size, 0)
        assert driver.get("queue_msix_vector") == 0xFFFF
        assert driver.get("queue_notify_off") == index
        assert driver.get("queue_desc") == 0


@pytest.mark.rule("PCI-D-15")
@pytest.mark.parametrize("index", [2, 1023, 0xFFFF])
def test_queues_that_do_not_exist_read_as_nothing(bench: DeviceBench, index: int) -> None:
    driver = bench.driver.probe()
    driver.set("queue_select", index)
    for name in ("queue_size", "queue_enable", "queue_desc", "queue_msix_vector"):
        driver.set(name, 1)
    assert driver.get("queue_select") == index
    assert driver.get("queue_size") == driver.get("queue_enable") == driver.get("queue_desc") == 0
    assert driver.get("queue_msix_vector") == 0xFFFF
    assert driver.get("queue_notify_off") == 0


def test_queue_addresses_are_64_bit(bench: DeviceBench) -> None:
    driver = bench.driver.probe()
    for name in ("queue_desc", "queue_driver", "queue_device"):
        driver.set(name, 0x1122334455667788)
        assert driver.get(name) == 0x1122334455667788


def test_queue_cannot_be_enabled_before_features_ok(bench: DeviceBench) -> None:
    driver = bench.driver.probe()
    driver.set("queue_enable", 1)
    assert driver.get("queue_enable") == 0


@pytest.mark.parametrize("value", [0, 2, 0xFFFF])
def test_enable_takes_nothing_but_1(bench: DeviceBench, value: int) -> None:
    driver = bench.driver.probe()
    driver.negotiate()
    driver.set("queue_enable", value)
    assert driver.get("queue_enable") == 0


def test_enabled_queue_is_frozen(bench: DeviceBench) -> None:
    driver = bench.driver.probe()
    driver.negotiate()
    ring = driver.setup_queue(0)
    driver.set("queue_size", 8)
    driver.set("queue_desc", 0)
    driver.set("queue_enable", 0)
    assert driver.get("queue_size") == 64
    assert driver.get("queue_desc") == ring.layout.descriptors
    assert driver.get("queue_enable") == 1


def test_queues_that_were_not_enabled_are_none_for_the_device(
    bench: DeviceBench, echo: EchoDevice
) -> None:
    driver = bench.driver.probe()
    driver.negotiate()
    driver.setup_queue(1)
    driver.add_status(OK)
    first, second = echo.started[0]
    assert first is None
    assert second is not None
    driver.kick(0)
    assert echo.handled == [1]


@pytest.mark.parametrize("size", [0, 3, 128, 0xFFFF])
def test_impossible_queue_size_breaks_the_device_at_driver_ok(
    bench: DeviceBench, size: int
) -> None:
    driver = bench.driver.probe()
    driver.negotiate()
    driver.set("queue_size", size)
    assert driver.get("queue_size") == 64
    driver.setup_queue(0)
    assert not broken(bench)
    driver.add_status(OK)
    assert broken(bench)


@pytest.mark.parametrize("address", [0x100001, 0xFEE00000, 1 << 63, (1 << 64) - 16])
@pytest.mark.parametrize("part", ["queue_desc", "queue_driver", "queue_device"])
def test_impossible_queue_address_breaks_the_device_at_driver_ok(
    bench: DeviceBench, part: str, address: int
) -> None:
    driver = bench.driver.probe()
    driver.negotiate()
    driver.set("queue_desc", 0x100000)
    driver.set("queue_driver", 0x102000)
    driver.set("queue_device", 0x103000)
    driver.set(part, address)
    driver.set("queue_enable", 1)
    driver.add_status(OK)
    assert broken(bench)
    assert bench.events("broken")


# -- kicks -----------------------------------------------------------------------------------------


@pytest.mark.rule("GEN-D-1")
def test_kicks_before_driver_ok_are_ignored_and_made_up_for(
    bench: DeviceBench, echo: EchoDevice
) -> None:
    driver = bench.driver.probe()
    driver.negotiate()
    ring = driver.setup_queue(0)
    ring.add([b"early"], [5])
    driver.kick(0)
    assert echo.handled == []
    driver.add_status(OK)
    assert ring.collect()[0].data == b"early"


def test_doorbell_by_mmio_exit_works_as_well(bench: DeviceBench, echo: EchoDevice) -> None:
    driver = bench.driver.start()
    echo.handled.clear()
    driver.queues[1].add([b"x"], [1])
    driver.kick(1, by_exit=True)
    assert echo.handled == [1]
    assert driver.queues[1].collect()[0].data == b"x"


def test_failed_driver_gets_no_service(bench: DeviceBench, echo: EchoDevice) -> None:
    driver = bench.driver.start()
    echo.handled.clear()
    driver.add_status(DeviceStatus.FAILED)
    driver.queues[0].add([b"x"], [1])
    driver.kick(0)
    echo.signals.queue(0)
    echo.signals.config()
    assert (echo.handled, bench.irq.take()) == ([], [])


def test_rings_rest_while_bus_mastering_is_off(bench: DeviceBench, echo: EchoDevice) -> None:
    driver = bench.driver.start()
    driver.write_pci(COMMAND, 2, Command.MEMORY_SPACE)
    driver.queues[0].add([b"x"], [1])
    driver.kick(0)
    assert driver.queues[0].collect() == []
    driver.write_pci(COMMAND, 2, Command.MEMORY_SPACE | Command.BUS_MASTER)
    assert driver.queues[0].collect()[0].data == b"x"
    assert bench.irq.take() == [1]


class Endless(EchoDevice):
    """A guest on another CPU refills the ring as fast as it is emptied, `left` times."""

    left = 0
    bench: DeviceBench

    def handle_queue(self, index: int, queue: VirtQueue) -> None:
        self.handled.append(index)
        ring = self.bench.driver.queues[index]
        for chain in queue.chains():
            queue.complete(chain)
            queue.publish()
            if self.left:
                self.left -= 1
                ring.collect()
                ring.add([b"x"])


@pytest.fixture
def endless() -> Iterator[DeviceBench]:
    device = Endless()
    with DeviceBench(device) as made:
        device.bench = made
        made.driver.start()
        device.handled.clear()
        yield made


def test_full_bound_is_continued_later(endless: DeviceBench) -> None:
    device = endless.device
    assert isinstance(device, Endless)
    device.left = 100
    endless.driver.queues[1].add([b"x"])
    endless.function.transport.kick(1)
    assert (device.left, device.handled) == (100 - 16, [1])
    assert len(endless.defer.waiting) == 1
    endless.function.transport.kick(1)
    assert len(endless.defer.waiting) == 1
    endless.defer.run()
    assert device.left == 0


def test_deferred_kick_does_not_reach_the_queues_after_a_reset(endless: DeviceBench) -> None:
    device = endless.device
    assert isinstance(device, Endless)
    device.left = 100
    endless.driver.queues[1].add([b"x"])
    endless.function.transport.kick(1)
    device.left = 0
    endless.driver.start()
    device.handled.clear()
    endless.defer.run()
    assert device.handled == []


class Nested(EchoDevice):
    """Kicks queue 1 and itself from within queue 0."""

    depth = 0
    deepest = 0

    def handle_queue(self, index: int, queue: VirtQueue) -> None:
        self.depth += 1
        self.deepest = max(self.deepest, self.depth)
        first = not self.handled
        super().handle_queue(index, queue)
        if index == 0 and first:
            self.signals.kick(1)
            self.signals.kick(0)
        self.depth -= 1


def test_device_may_kick_itself_while_it_is_being_kicked() -> None:
    device = Nested()
    with DeviceBench(device) as bench:
        bench.driver.start()
        device.handled.clear()
        bench.function.transport.kick(0)
        assert device.handled == [0, 1]
        bench.defer.run()
        assert device.handled == [0, 1, 0]
        assert device.deepest == 2


# -- errors and reset ------------------------------------------------------------------------------


@pytest.mark.rule("GEN-D-2")
def test_violation_breaks_the_device_with_one_config_interrupt(
    bench: DeviceBench, echo: EchoDevice
) -> None:
    driver = bench.driver.start()
    bench.irq.take()
    driver.queues[0].offer(64)
    driver.kick(0)
    driver.kick(0)
    assert broken(bench)
    assert bench.irq.take() == [0]
    assert driver.isr() == 2
    assert "out of the table" in str(bench.events("broken")[0].fields["why"])


@pytest.mark.parametrize("failure", [DeviceBroken("request too short"), RuntimeError("a bug")])
def test_exceptions_of_the_model_break_only_the_device(
    bench: DeviceBench, echo: EchoDevice, failure: Exception
) -> None:
    driver = bench.driver.start()
    echo.failure = failure
    driver.kick(1)
    assert broken(bench)
    event = bench.events("broken")[0]
    assert ("traceback" in event.fields) == isinstance(failure, RuntimeError)


def test_broken_device_serves_nobody_until_reset(bench: DeviceBench, echo: EchoDevice) -> None:
    driver = bench.driver.start()
    echo.failure = DeviceBroken("test")
    driver.kick(0)
    echo.handled.clear()
    bench.irq.take()
    driver.queues[1].add([b"x"], [1])
    driver.kick(1)
    echo.signals.queue(1)
    echo.signals.config()
    assert (echo.handled, bench.irq.take()) == ([], [])
    assert bench.function.transport.trouble == "test"
    driver.start()
    assert bench.function.transport.trouble == ""
    assert driver.request(0, b"again", 5) == b"again"


@pytest.mark.parametrize("method", ["start", "accept_features", "config_space", "write_config"])
def test_no_method_of_a_model_can_raise_into_a_vcpu(
    bench: DeviceBench, echo: EchoDevice, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(echo, method, fail)
    driver = bench.driver.probe()
    driver.negotiate()
    driver.add_status(OK)
    driver.read_config(8)
    bench.function.transport.write_config(0, 4, 1)
    assert broken(bench)


@pytest.mark.rule("PCI-D-12")
def test_failing_reset_of_a_model_still_reads_as_0(
    bench: DeviceBench, echo: EchoDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = bench.driver.start()

    def fail() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(echo, "reset", fail)
    driver.reset()
    assert driver.get("device_status") == 0
    assert bench.events("broken")


@pytest.mark.rule("PCI-D-12", "PCI-D-13", "PCI-D-30")
def test_reset_forgets_everything_the_driver_did(bench: DeviceBench, echo: EchoDevice) -> None:
    driver = bench.driver.start()
    resets = echo.resets
    driver.set("queue_select", 1)
    driver.reset()
    assert echo.resets == resets + 1
    assert driver.status == DeviceStatus(0)
    assert driver.get("queue_select") == 0
    assert driver.get("driver_feature") == 0
    assert driver.get("queue_enable") == 0
    assert driver.get("queue_desc") == 0
    assert driver.get("config_msix_vector") == driver.get("queue_msix_vector") == 0xFFFF


@pytest.mark.rule("GEN-D-5")
def test_after_reset_old_queues_and_signals_are_dead(bench: DeviceBench, echo: EchoDevice) -> None:
    driver = bench.driver.start()
    ring = driver.queues[0]
    old = echo.started[-1][0]
    assert old is not None
    ring.add([b"x"], [1])
    chain = old.pop()
    assert chain is not None
    driver.reset()
    bench.irq.take()
    chain.write(b"!")
    old.complete(chain, 1)
    assert not old.publish()
    echo.signals.queue(0)
    assert (ring.used_idx, bench.irq.take()) == (0, [])


def test_device_restarts_with_other_rings_and_features(bench: DeviceBench) -> None:
    bench.driver.start()
    bench.driver.start(VERSION_1, size=4)
    for n in range(9):
        assert bench.driver.request(0, bytes([n]), 1) == bytes([n])


def test_system_reset_resets_transport_and_model(bench: DeviceBench, echo: EchoDevice) -> None:
    bench.driver.start()
    bench.function.system_reset()
    assert echo.system_resets == 1
    assert bench.function.transport.status == DeviceStatus(0)
    assert bench.doorbells.bound == {}
    bench.host.reset()
    bench.host.assign_bars()
    bench.driver.start()
    assert bench.driver.request(0, b"reborn", 6) == b"reborn"


# -- configuration generation ----------------------------------------------------------------------


@pytest.mark.rule("PCI-D-11")
def test_generation_moves_with_every_change_that_was_looked_at(
    bench: DeviceBench, echo: EchoDevice
) -> None:
    driver = bench.driver.start()
    seen = [driver.get("config_generation")]
    for _ in range(3):
        echo.signals.config(notify=False)
        seen.append(driver.get("config_generation"))
    assert len(set(seen)) == 4


@pytest.mark.rule("PCI-D-11")
@pytest.mark.parametrize("changes", [1, 2, 255, 256, 257, 512, 65536])
def test_any_number_of_unread_changes_is_visible(
    bench: DeviceBench, echo: EchoDevice, changes: int
) -> None:
    driver = bench.driver.start()
    before = driver.get("config_generation")
    for _ in range(changes):
        echo.signals.config(notify=False)
    assert driver.get("config_generation") != before


def test_generation_is_stable_without_changes(bench: DeviceBench) -> None:
    driver = bench.driver.start()
    assert len({driver.get("config_generation") for _ in range(5)}) == 1


@pytest.mark.rule("PCI-D-11")
def test_changes_before_driver_ok_move_the_generation_but_do_not_notify(
    bench: DeviceBench, echo: EchoDevice
) -> None:
    driver = bench.driver.probe()
    driver.negotiate()
    driver.enable_msix()
    driver.set("config_msix_vector", 0)
    before = driver.get("config_generation")
    echo.signals.config()
    assert driver.get("config_generation") != before
    assert (bench.irq.take(), driver.isr()) == ([], 0)


def test_quiet_change_does_not_interrupt(bench: DeviceBench, echo: EchoDevice) -> None:
    driver = bench.driver.start()
    bench.irq.take()
    echo.signals.config(notify=False)
    assert (bench.irq.take(), driver.isr()) == ([], 0)
