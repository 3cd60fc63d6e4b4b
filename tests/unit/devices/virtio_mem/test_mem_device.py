"""VirtioMem: identity, requests and what they change, a host that refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.spec.virtio_mem import (
    BlockState,
    Feature,
    MemConfig,
    MemResponse,
    RequestType,
    ResponseType,
)
from minivmm.testing.mem_driver import MemDriver
from minivmm.units import GIB, MIB

Make = Callable[..., VirtioMem]
BLOCK = 2 * MIB
ACK = ResponseType.ACK
BUSY, ERROR = ResponseType.BUSY, ResponseType.ERROR


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


@pytest.mark.rule("MEM-D-12")
@pytest.mark.parametrize(("setting", "accepted"), [("auto", True), ("on", False), ("off", True)])
def test_driver_without_the_promise_is_refused_only_if_insisted(
    make: Make, setting: str, accepted: bool
) -> None:
    device = make(unplugged_inaccessible=setting)

    assert device.accept_features(1 << 32 | Feature.ACPI_PXM) == accepted


def test_driver_with_the_promise_is_accepted(make: Make) -> None:
    assert make(unplugged_inaccessible="on").accept_features(Feature.UNPLUGGED_INACCESSIBLE)


# -- requests ------------------------------------------------------------------------------------


@pytest.mark.rule("MEM-D-3", "MEM-D-29")
def test_plug_is_acknowledged_and_counted(device: VirtioMem, driver: MemDriver) -> None:
    assert driver.plug(0, 3) is ACK

    assert device.plugged_size == 3 * BLOCK
    assert driver.config().plugged_size == 3 * BLOCK
    assert driver.state(0, 3) is BlockState.PLUGGED


@pytest.mark.rule("MEM-D-27")
def test_plug_overlapping_plugged_blocks_changes_nothing(
    device: VirtioMem, driver: MemDriver
) -> None:
    """MEM-D-27, and a request does all or nothing."""
    driver.plug(4, 2)

    assert driver.plug(4, 2) is ERROR
    assert driver.plug(2, 3) is ERROR
    assert driver.plug(5, 3) is ERROR

    assert list(device.blocks.plugged_ranges()) == [(4, 2)]


@pytest.mark.rule("MEM-D-3", "MEM-D-35")
def test_unplug_is_acknowledged_and_counted(device: VirtioMem, driver: MemDriver) -> None:
    driver.plug(0, 8)

    assert driver.unplug(2, 3) is ACK

    assert device.plugged_size == 5 * BLOCK
    assert driver.state(2, 3) is BlockState.UNPLUGGED
    assert driver.state(0, 8) is BlockState.MIXED


@pytest.mark.rule("MEM-D-33")
def test_unplug_of_partly_unplugged_range_changes_nothing(
    device: VirtioMem, driver: MemDriver
) -> None:
    driver.plug(0, 4)

    assert driver.unplug(2, 4) is ERROR

    assert device.plugged_size == 4 * BLOCK


@pytest.mark.rule("MEM-D-39", "MEM-D-40")
def test_unplug_all_is_idempotent(device: VirtioMem, driver: MemDriver) -> None:
    """MEM-D-39, MEM-D-40, reference A.8-9."""
    driver.plug(0, 4)
    driver.plug(9, 4)

    assert driver.unplug_all() is ACK
    assert driver.unplug_all() is ACK

    assert device.plugged_size == 0
    assert driver.state(0, 32) is BlockState.UNPLUGGED


@pytest.mark.rule("MEM-D-45", "MEM-D-46")
def test_state_of_a_range(driver: MemDriver) -> None:
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


def test_refused_answer_carries_no_state(driver: MemDriver) -> None:
    assert driver.request(RequestType.STATE, 1, 1) == MemResponse(type=ERROR)


def test_unknown_request_is_answered_and_the_device_works_on(driver: MemDriver) -> None:
    """Reference A.8-2."""
    assert driver.request(77).type == ERROR
    assert driver.plug(0) is ACK


# -- the host refuses ----------------------------------------------------------------------------


@pytest.mark.rule("MEM-D-34", "MEM-D-38")
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


@pytest.mark.rule("MEM-D-8", "MEM-D-38")
def test_refused_unplug_all_does_not_shrink_the_usable_region(
    device: VirtioMem, driver: MemDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
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


@pytest.mark.rule("MEM-D-45")
def test_state_is_answered_while_the_host_refuses(
    device: VirtioMem, driver: MemDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference A.8-16."""
    monkeypatch.setattr(device.region, "discard", refuse)

    assert driver.state(0) is BlockState.UNPLUGGED
