"""VirtioMem: requests take effect, sizes follow their rules, the right things notify the driver."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.errors import UsageError
from minivmm.spec.virtio_mem import (
    BlockState,
    Feature,
    MemConfig,
    MemResponse,
    RequestType,
    ResponseType,
)
from minivmm.testing.fake_queue import FakeSignals
from minivmm.testing.mem_driver import MemDriver
from minivmm.units import GIB, MIB, TIB

Make = Callable[..., VirtioMem]
BLOCK = 2 * MIB
ACK, NACK = ResponseType.ACK, ResponseType.NACK
BUSY, ERROR = ResponseType.BUSY, ResponseType.ERROR
MANY = 64 * GIB


def refuse(offset: int, length: int) -> None:
    """Stands in for Region.discard on a host that does not give memory back."""
    raise OSError(22, "madvise: Invalid argument")


# -- identity and configuration ------------------------------------------------------------------


def test_traits_are_those_of_a_memory_device() -> None:
    traits = VirtioMem.traits

    assert (traits.device_id, traits.queue_sizes, traits.config_size) == (24, (128,), 56)
    assert traits.pci_class == 0x00FF00


def test_config_space_tells_everything(make: Make) -> None:
    """MEM-D-5, MEM-D-6."""
    device = make(size=8 * GIB, requested_size=GIB, node=3)

    assert len(device.config_space()) == 56
    assert MemConfig.parse(device.config_space()) == MemConfig(
        block_size=BLOCK,
        node_id=3,
        addr=4 * GIB,
        region_size=8 * GIB,
        usable_region_size=4 * GIB,
        plugged_size=0,
        requested_size=GIB,
    )


@pytest.mark.parametrize(("setting", "offered"), [("auto", True), ("on", True), ("off", False)])
def test_unplugged_inaccessible_is_offered_unless_off(
    make: Make, setting: str, offered: bool
) -> None:
    features = make(unplugged_inaccessible=setting).offered_features()

    assert bool(features & Feature.UNPLUGGED_INACCESSIBLE) == offered
    assert features & Feature.ACPI_PXM
    assert not features & Feature.PERSISTENT_SUSPEND


@pytest.mark.parametrize(("setting", "accepted"), [("auto", True), ("on", False), ("off", True)])
def test_driver_without_the_promise_is_refused_only_if_insisted(
    make: Make, setting: str, accepted: bool
) -> None:
    """MEM-D-12."""
    device = make(unplugged_inaccessible=setting)

    assert device.accept_features(1 << 32 | Feature.ACPI_PXM) == accepted


def test_driver_with_the_promise_is_accepted(make: Make) -> None:
    assert make(unplugged_inaccessible="on").accept_features(Feature.UNPLUGGED_INACCESSIBLE)


# -- requests ------------------------------------------------------------------------------------


def test_plug_is_acknowledged_and_counted(device: VirtioMem, driver: MemDriver) -> None:
    """MEM-D-3, MEM-D-29."""
    assert driver.plug(0, 3) is ACK

    assert device.plugged_size == 3 * BLOCK
    assert driver.config().plugged_size == 3 * BLOCK
    assert driver.state(0, 3) is BlockState.PLUGGED


def test_plug_exactly_to_the_target_and_one_block_beyond(driver: MemDriver) -> None:
    assert driver.plug(0, 32) is ACK
    assert driver.plug(32, 1) is NACK


def test_plug_overlapping_plugged_blocks_changes_nothing(
    device: VirtioMem, driver: MemDriver
) -> None:
    """MEM-D-27, and a request does all or nothing."""
    driver.plug(4, 2)

    assert driver.plug(4, 2) is ERROR
    assert driver.plug(2, 3) is ERROR
    assert driver.plug(5, 3) is ERROR

    assert list(device.blocks.plugged_ranges()) == [(4, 2)]


def test_unplug_is_acknowledged_and_counted(device: VirtioMem, driver: MemDriver) -> None:
    """MEM-D-35."""
    driver.plug(0, 8)

    assert driver.unplug(2, 3) is ACK

    assert device.plugged_size == 5 * BLOCK
    assert driver.state(2, 3) is BlockState.UNPLUGGED
    assert driver.state(0, 8) is BlockState.MIXED


def test_unplug_of_partly_unplugged_range_changes_nothing(
    device: VirtioMem, driver: MemDriver
) -> None:
    """MEM-D-33."""
    driver.plug(0, 4)

    assert driver.unplug(2, 4) is ERROR

    assert device.plugged_size == 4 * BLOCK


def test_unplug_all_is_idempotent(device: VirtioMem, driver: MemDriver) -> None:
    """MEM-D-39, MEM-D-40, reference A.8-9."""
    driver.plug(0, 4)
    driver.plug(9, 4)

    assert driver.unplug_all() is ACK
    assert driver.unplug_all() is ACK

    assert device.plugged_size == 0
    assert driver.state(0, 32) is BlockState.UNPLUGGED


def test_state_of_a_range(driver: MemDriver) -> None:
    """MEM-D-45, MEM-D-46."""
    driver.plug(8, 8)

    assert driver.state(8, 8) is BlockState.PLUGGED
    assert driver.state(15) is BlockState.PLUGGED
    assert driver.state(16, 8) is BlockState.UNPLUGGED
    assert driver.state(0, 16) is BlockState.MIXED
    assert driver.state(0, 512) is BlockState.MIXED


def test_state_up_to_the_usable_end_is_answered(make: Make) -> None:
    """Reference D.9: the crash kernel asks for ranges that end exactly there."""
    device = make(size=8 * GIB, requested_size=GIB)
    usable = device.usable_region_size // BLOCK

    assert MemDriver(device).state(0, usable) is BlockState.UNPLUGGED
    assert MemDriver(device).state(usable - 1) is BlockState.UNPLUGGED
    assert MemDriver(device).state(usable - 1, 2) is None


def test_most_blocks_that_a_request_can_name(make: Make) -> None:
    driver = MemDriver(make(size=256 * GIB, requested_size=256 * GIB))

    assert driver.plug(1, 65535) is ACK
    assert driver.state(1, 65535) is BlockState.PLUGGED
    assert driver.unplug(1, 65535) is ACK


def test_refused_answer_carries_no_state(driver: MemDriver) -> None:
    assert driver.request(RequestType.STATE, 1, 1) == MemResponse(type=ERROR)


def test_unknown_request_is_answered_and_the_device_works_on(driver: MemDriver) -> None:
    """Reference A.8-2."""
    assert driver.request(77).type == ERROR
    assert driver.plug(0) is ACK


def test_cost_of_a_request_does_not_depend_on_the_region(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = make(size=TIB, requested_size=TIB)
    touched: list[tuple[int, int]] = []
    monkeypatch.setattr(device.region, "discard", lambda *range_: touched.append(range_))
    driver = MemDriver(device)

    driver.plug(100, 4)
    driver.unplug(100, 4)

    assert touched == [(100 * BLOCK, 4 * BLOCK)]


# -- the host refuses ----------------------------------------------------------------------------


def test_unplug_that_the_host_refuses_is_busy_and_changes_nothing(
    device: VirtioMem, driver: MemDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MEM-D-34: a passing reason, not ERROR, which Linux would take for good."""
    driver.plug(0, 4)
    monkeypatch.setattr(device.region, "discard", refuse)

    assert driver.unplug(0, 2) is BUSY
    assert driver.unplug_all() is BUSY

    assert device.plugged_size == 4 * BLOCK
    assert driver.state(0, 4) is BlockState.PLUGGED


def test_refused_unplug_all_does_not_shrink_the_usable_region(
    device: VirtioMem, driver: MemDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MEM-D-8."""
    driver.plug(0)
    device.set_requested_size(0)
    monkeypatch.setattr(device.region, "discard", refuse)

    assert driver.unplug_all() is BUSY

    assert device.usable_region_size == GIB


def test_unplug_all_of_nothing_is_never_busy(
    device: VirtioMem, driver: MemDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference A.8-9."""
    monkeypatch.setattr(device.region, "discard", refuse)

    assert driver.unplug_all() is ACK


def test_state_is_answered_while_the_host_refuses(
    device: VirtioMem, driver: MemDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference A.8-16."""
    monkeypatch.setattr(device.region, "discard", refuse)

    assert driver.state(0) is BlockState.UNPLUGGED


# -- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requested", "usable"),
    [
        (0, 0),
        (BLOCK, 4 * GIB),
        (2 * GIB, 4 * GIB),
        (2 * GIB + BLOCK, 6 * GIB),
        (MANY - 4 * GIB, MANY - 2 * GIB),
        (MANY - 4 * GIB + BLOCK, MANY),
        (MANY, MANY),
    ],
)
def test_usable_region_holds_the_target_and_room_for_a_linux_block(
    make: Make, requested: int, usable: int
) -> None:
    """MEM-D-4, reference D.3."""
    assert make(size=MANY, requested_size=requested).usable_region_size == usable


def test_usable_region_keeps_whole_blocks_when_blocks_are_huge(make: Make) -> None:
    """MEM-D-6."""
    device = make(size=MANY, requested_size=4 * GIB, block_size=4 * GIB)

    assert device.usable_region_size == 8 * GIB


def test_raised_target_grows_the_usable_region(make: Make) -> None:
    device = make(size=MANY, requested_size=0)

    device.set_requested_size(3 * GIB)

    assert device.requested_size == 3 * GIB
    assert device.usable_region_size == 6 * GIB


def test_lowered_target_does_not_shrink_the_usable_region(make: Make) -> None:
    """MEM-D-8."""
    device = make(size=MANY, requested_size=8 * GIB)

    device.set_requested_size(0)

    assert device.requested_size == 0
    assert device.usable_region_size == 10 * GIB


def test_lowered_target_lets_unplug_and_nacks_plug(device: VirtioMem, driver: MemDriver) -> None:
    driver.plug(0, 32)

    device.set_requested_size(8 * BLOCK)

    assert driver.plug(32) is NACK
    assert driver.unplug(31) is ACK
    assert driver.plug(31) is NACK


def test_unplug_all_shrinks_the_usable_region_to_the_rule(make: Make) -> None:
    """MEM-D-41; not below the target (MEM-D-4, reference A.8-10)."""
    device = make(size=MANY, requested_size=8 * GIB)
    driver = MemDriver(device)

    device.set_requested_size(GIB)
    driver.unplug_all()
    assert device.usable_region_size == 4 * GIB

    device.set_requested_size(0)
    driver.unplug_all()
    assert device.usable_region_size == 0
    assert driver.state(0) is None


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK + 4096, -BLOCK])
def test_target_off_the_block_grid_is_refused_in_qemus_words(device: VirtioMem, size: int) -> None:
    with pytest.raises(UsageError) as caught:
        device.set_requested_size(size)

    assert str(caught.value) == ("'requested-size' has to be multiples of 'block-size' (0x200000)")


def test_target_beyond_the_region_is_refused_in_qemus_words(device: VirtioMem) -> None:
    device.set_requested_size(GIB)
    with pytest.raises(UsageError) as caught:
        device.set_requested_size(GIB + BLOCK)

    assert str(caught.value) == (
        "'requested-size' cannot exceed the memory backend size(0x40000000)"
    )


def test_refused_target_changes_and_notifies_nothing(
    device: VirtioMem, signals: FakeSignals
) -> None:
    for size in (1, 2 * GIB):
        with pytest.raises(UsageError):
            device.set_requested_size(size)

    assert device.requested_size == 64 * MIB
    assert signals.config_changes == []


# -- notifications -------------------------------------------------------------------------------


def test_new_target_notifies_the_driver(device: VirtioMem, signals: FakeSignals) -> None:
    """MEM-D-9."""
    device.set_requested_size(GIB)

    assert signals.config_changes == [True]


def test_repeated_target_notifies_again(device: VirtioMem, signals: FakeSignals) -> None:
    """MEM-D-11: the way to poke a driver that waits."""
    device.set_requested_size(64 * MIB)
    device.set_requested_size(64 * MIB)

    assert signals.config_changes == [True, True]


def test_plugging_changes_the_configuration_silently(
    device: VirtioMem, driver: MemDriver, signals: FakeSignals
) -> None:
    """MEM-D-10."""
    driver.plug(0, 4)
    driver.unplug(0, 2)
    driver.unplug_all()

    assert signals.config_changes == [False, False, False]


def test_unplug_all_shrinks_silently(
    device: VirtioMem, driver: MemDriver, signals: FakeSignals
) -> None:
    """MEM-D-9 excepts it; Linux reads the configuration again by itself."""
    device.set_requested_size(0)
    signals.config_changes.clear()

    driver.unplug_all()

    assert device.usable_region_size == 0
    assert signals.config_changes == [False]


def test_refused_requests_leave_the_configuration_alone(
    device: VirtioMem, driver: MemDriver, signals: FakeSignals
) -> None:
    driver.plug(0, 33)
    driver.unplug(0)
    driver.state(0)
    driver.request(9)

    assert signals.config_changes == []


def test_size_changes_are_reported_to_the_host(device: VirtioMem, driver: MemDriver) -> None:
    sizes: list[int] = []
    device.on_size_change = sizes.append

    driver.plug(0, 4)
    driver.plug(0, 4)
    driver.unplug(3)
    driver.unplug_all()
    driver.unplug_all()

    assert sizes == [4 * BLOCK, 3 * BLOCK, 0]


def test_every_request_is_traced_with_its_reason(
    device: VirtioMem, driver: MemDriver, signals: FakeSignals
) -> None:
    driver.plug(1, 2)
    driver.plug(1, 32)
    driver.unplug_all()
    driver.request(9)

    assert [name for name, _ in signals.events] == ["request"] * 4
    plug, nack, unplug_all, unknown = (fields for _, fields in signals.events)
    assert plug == {
        "type": "PLUG",
        "addr": "0x100200000",
        "blocks": 2,
        "answer": "ACK",
        "plugged": 2 * BLOCK,
    }
    assert (nack["answer"], nack["why"]) == ("NACK", "more than requested-size")
    assert unplug_all == {"type": "UNPLUG_ALL", "answer": "ACK", "plugged": 0}
    assert (unknown["type"], unknown["why"]) == (9, "unknown request type")


# -- resets --------------------------------------------------------------------------------------


def test_device_reset_keeps_blocks_and_sizes(device: VirtioMem, driver: MemDriver) -> None:
    """MEM-D-13: kexec, kdump, suspend and driver reloads use it."""
    driver.plug(3, 5)
    before = driver.config()

    device.reset()

    assert driver.config() == before
    assert driver.state(3, 5) is BlockState.PLUGGED


def test_system_reset_unplugs_all_and_keeps_the_target(make: Make) -> None:
    """MEM-D-22."""
    device = make(size=MANY, requested_size=8 * GIB)
    driver = MemDriver(device)
    driver.plug(0, 100)
    device.set_requested_size(GIB)
    sizes: list[int] = []
    device.on_size_change = sizes.append

    device.system_reset()

    assert device.plugged_size == 0
    assert device.requested_size == GIB
    assert device.usable_region_size == 4 * GIB
    assert driver.state(0, 100) is BlockState.UNPLUGGED
    assert sizes == [0]


def test_system_reset_that_the_host_refuses_leaves_blocks_plugged(
    device: VirtioMem, driver: MemDriver, signals: FakeSignals, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.plug(0, 4)
    monkeypatch.setattr(device.region, "discard", refuse)

    device.system_reset()

    assert device.plugged_size == 4 * BLOCK
    assert signals.events[-1][0] == "system-reset"


# -- for people ----------------------------------------------------------------------------------


def test_inspect_shows_sizes_ranges_and_answers(device: VirtioMem, driver: MemDriver) -> None:
    driver.plug(0, 2)
    driver.plug(4, 1)
    driver.plug(0, 64)
    driver.request(9)

    assert device.inspect() == {
        "id": "vmem0",
        "type": "virtio-mem",
        "memaddr": "0x100000000",
        "node": 0,
        "block-size": BLOCK,
        "region-size": GIB,
        "usable-region-size": GIB,
        "requested-size": 64 * MIB,
        "plugged-size": 3 * BLOCK,
        "plugged": ["0x100000000-0x1003fffff", "0x100800000-0x1009fffff"],
        "answers": {"PLUG": {"ACK": 2, "NACK": 1}, "UNKNOWN": {"ERROR": 1}},
    }


def test_inspect_of_scattered_blocks_stays_short(make: Make) -> None:
    device = make(requested_size=GIB)
    driver = MemDriver(device)
    for block in range(0, 512, 2):
        driver.plug(block)

    ranges = device.inspect()["plugged"]

    assert isinstance(ranges, list)
    assert len(ranges) == 32
