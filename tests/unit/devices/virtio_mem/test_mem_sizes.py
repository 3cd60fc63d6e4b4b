"""VirtioMem: sizes follow their rules, the right things notify the driver, resets, inspect."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.errors import UsageError
from minivmm.spec.virtio_mem import (
    BlockState,
    ResponseType,
)
from minivmm.testing.fake_queue import FakeSignals
from minivmm.testing.mem_driver import MemDriver
from minivmm.units import GIB, MIB

Make = Callable[..., VirtioMem]
BLOCK = 2 * MIB
ACK, NACK = ResponseType.ACK, ResponseType.NACK
MANY = 64 * GIB


def refuse(offset: int, length: int) -> None:
    """Stands in for Region.discard on a host that does not give memory back."""
    raise OSError(22, "madvise: Invalid argument")


# -- sizes ---------------------------------------------------------------------------------------


@pytest.mark.rule("MEM-D-4")
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


@pytest.mark.rule("MEM-D-6")
def test_usable_region_keeps_whole_blocks_when_blocks_are_huge(make: Make) -> None:
    device = make(size=MANY, requested_size=4 * GIB, block_size=4 * GIB)

    assert device.usable_region_size == 8 * GIB


@pytest.mark.rule("MEM-D-1")
def test_raised_target_grows_the_usable_region(make: Make) -> None:
    device = make(size=MANY, requested_size=0)

    device.set_requested_size(3 * GIB)

    assert device.requested_size == 3 * GIB
    assert device.usable_region_size == 6 * GIB


@pytest.mark.rule("MEM-D-8")
def test_lowered_target_does_not_shrink_the_usable_region(make: Make) -> None:
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


@pytest.mark.rule("MEM-D-41", "MEM-D-4")
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


@pytest.mark.rule("MEM-D-6")
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


@pytest.mark.rule("MEM-D-9")
def test_new_target_notifies_the_driver(device: VirtioMem, signals: FakeSignals) -> None:
    device.set_requested_size(GIB)

    assert signals.config_changes == [True]


@pytest.mark.rule("MEM-D-11")
def test_repeated_target_notifies_again(device: VirtioMem, signals: FakeSignals) -> None:
    """MEM-D-11: the way to poke a driver that waits."""
    device.set_requested_size(64 * MIB)
    device.set_requested_size(64 * MIB)

    assert signals.config_changes == [True, True]


@pytest.mark.rule("MEM-D-10")
def test_plugging_changes_the_configuration_silently(
    device: VirtioMem, driver: MemDriver, signals: FakeSignals
) -> None:
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

    assert [name for name, _ in signals.events] == ["answer"] * 4
    plug, nack, unplug_all, unknown = (fields for _, fields in signals.events)
    assert plug == {
        "type": "PLUG",
        "gpa": 0x1_0020_0000,
        "blocks": 2,
        "size": 2 * BLOCK,
        "answer": "ACK",
        "plugged": 2 * BLOCK,
    }
    assert (nack["answer"], nack["why"]) == ("NACK", "more than requested-size")
    assert unplug_all == {"type": "UNPLUG_ALL", "answer": "ACK", "plugged": 0}
    assert (unknown["type"], unknown["why"]) == (9, "unknown request type")


# -- resets --------------------------------------------------------------------------------------


@pytest.mark.rule("MEM-D-13")
def test_device_reset_keeps_blocks_and_sizes(device: VirtioMem, driver: MemDriver) -> None:
    """MEM-D-13: kexec, kdump, suspend and driver reloads use it."""
    driver.plug(3, 5)
    before = driver.config()

    device.reset()

    assert driver.config() == before
    assert driver.state(3, 5) is BlockState.PLUGGED


@pytest.mark.rule("MEM-D-21", "MEM-D-22")
def test_system_reset_unplugs_all_and_keeps_the_target(make: Make) -> None:
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
        "backing": "anon",
        "prealloc": False,
        "protect": "off",
        "short-of": 0,
        "intrusions": {"count": 0, "recent": []},
    }


def test_inspect_of_scattered_blocks_stays_short(make: Make) -> None:
    device = make(requested_size=GIB)
    driver = MemDriver(device)
    for block in range(0, 512, 2):
        driver.plug(block)

    ranges = device.inspect()["plugged"]

    assert isinstance(ranges, list)
    assert len(ranges) == 32
