"""While a machine is migrated, no block of its devices changes; STATE answers (reference E.3)."""

from __future__ import annotations

import pytest

from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.memory.guest import GuestMemory
from minivmm.spec.virtio_mem import BlockState, ResponseType
from minivmm.testing.fake_queue import FakeQueue
from minivmm.testing.mem_driver import MemDriver
from minivmm.testing.slow_host import SlowHost
from minivmm.units import MIB

ACK = ResponseType.ACK


@pytest.fixture
def moving(device: VirtioMem, driver: MemDriver) -> VirtioMem:
    """Blocks 0 to 7 of 32 requested ones are plugged."""
    assert driver.plug(0, 8) is ACK
    device.migrating = True
    return device


def test_every_change_is_busy(moving: VirtioMem, driver: MemDriver) -> None:
    assert driver.plug(8) is ResponseType.BUSY
    assert driver.unplug(0) is ResponseType.BUSY
    assert driver.unplug_all() is ResponseType.BUSY
    assert moving.plugged_size == 16 * MIB
    assert moving.ledger.counts()["PLUG"] == {"ACK": 1, "BUSY": 1}


def test_state_answers(moving: VirtioMem, driver: MemDriver) -> None:
    assert driver.state(0, 8) is BlockState.PLUGGED
    assert driver.state(8) is BlockState.UNPLUGGED
    assert driver.state(0, 9) is BlockState.MIXED


def test_what_is_wrong_is_wrong_all_the_same(moving: VirtioMem, driver: MemDriver) -> None:
    """BUSY makes a driver try again: not what could never be done."""
    assert driver.plug(0) is ResponseType.ERROR
    assert driver.plug(8, 25) is ResponseType.NACK
    assert driver.unplug(8) is ResponseType.ERROR


def test_unplug_all_of_nothing_has_nothing_to_wait_for(
    device: VirtioMem, driver: MemDriver
) -> None:
    device.migrating = True

    assert driver.unplug_all() is ResponseType.ACK


def test_afterwards_everything_goes_again(moving: VirtioMem, driver: MemDriver) -> None:
    moving.migrating = False

    assert driver.plug(8) is ResponseType.ACK
    assert driver.unplug_all() is ResponseType.ACK


def test_a_system_reset_keeps_blocks_and_content(
    moving: VirtioMem, driver: MemDriver, memory: GuestMemory
) -> None:
    """MEM-D-22 says SHOULD; the next driver does UNPLUG_ALL, when it may again."""
    usable = moving.usable_region_size
    memory.write(moving.window.base, b"kept")
    moving.set_requested_size(0)

    moving.system_reset()

    assert moving.plugged_size == 16 * MIB
    assert moving.usable_region_size == usable
    assert memory.read(moving.window.base, 4) == b"kept"
    assert driver.state(0, 8) is BlockState.PLUGGED
    moving.migrating = False
    assert driver.unplug_all() is ResponseType.ACK
    assert moving.plugged_size == 0


def test_what_is_under_way_ends_as_it_had_begun(device: VirtioMem, driver: MemDriver) -> None:
    errands = SlowHost()
    assert driver.plug(0, 32) is ResponseType.ACK
    device.service.errands = errands
    with pytest.raises(AssertionError, match=r"used\.len"):  # there is no answer yet
        driver.unplug(0, 32)
    assert device.at_work

    device.migrating = True
    assert device.at_work
    errands.finish()
    device.handle_queue(0, FakeQueue())

    assert not device.at_work
    assert device.plugged_size == 0
