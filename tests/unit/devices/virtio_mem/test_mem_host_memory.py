"""What happens to host memory: given back, kept, zeroed, and closed to the VMM when unplugged."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.errors import GuestAddressError
from minivmm.memory.guest import GuestMemory
from minivmm.memory.region import PAGE_SIZE
from minivmm.spec.virtio_mem import ResponseType
from minivmm.testing.mem_driver import MemDriver
from minivmm.units import MIB

Make = Callable[..., VirtioMem]
BLOCK = 2 * MIB
ACK = ResponseType.ACK


def fill(memory: GuestMemory, driver: MemDriver, block: int, count: int, value: bytes) -> None:
    memory.write(driver.address(block), value * (count * BLOCK))


def test_plugging_alone_takes_no_host_memory(device: VirtioMem, driver: MemDriver) -> None:
    driver.plug(0, 32)

    assert device.resident() == 0


def test_unplug_gives_written_blocks_back(
    device: VirtioMem, driver: MemDriver, memory: GuestMemory
) -> None:
    driver.plug(0, 8)
    fill(memory, driver, 0, 8, b"x")
    assert device.resident() == 8 * BLOCK

    driver.unplug(2, 4)
    assert device.resident() == 4 * BLOCK

    driver.unplug(0, 2)
    driver.unplug(6, 2)
    assert device.resident() == 0


@pytest.mark.rule("MEM-D-18")
def test_unplug_leaves_neighbours_alone(driver: MemDriver, memory: GuestMemory) -> None:
    driver.plug(0, 3)
    fill(memory, driver, 0, 3, b"x")

    driver.unplug(1)

    assert memory.read(driver.address(0), BLOCK) == b"x" * BLOCK
    assert memory.read(driver.address(2), BLOCK) == b"x" * BLOCK


def test_unplug_all_gives_everything_back(
    device: VirtioMem, driver: MemDriver, memory: GuestMemory
) -> None:
    driver.plug(0, 4)
    driver.plug(20, 4)
    fill(memory, driver, 0, 4, b"x")
    fill(memory, driver, 20, 4, b"y")

    driver.unplug_all()

    assert device.resident() == 0


@pytest.mark.rule("MEM-D-17")
def test_block_reads_as_zero_after_it_was_plugged_again(
    driver: MemDriver, memory: GuestMemory
) -> None:
    """Reference A.8-13: undefined by the specification, zero here; nothing stale ever returns."""
    driver.plug(0, 2)
    fill(memory, driver, 0, 2, b"x")

    driver.unplug(0)
    driver.plug(0)

    assert memory.read(driver.address(0), BLOCK) == bytes(BLOCK)
    assert memory.read(driver.address(1), BLOCK) == b"x" * BLOCK


@pytest.mark.rule("MEM-D-18")
def test_refused_requests_do_not_touch_content(driver: MemDriver, memory: GuestMemory) -> None:
    driver.plug(0, 2)
    fill(memory, driver, 0, 2, b"x")

    driver.plug(0, 2)
    driver.unplug(1, 2)
    driver.unplug(0, 0)

    assert memory.read(driver.address(0), 2 * BLOCK) == b"x" * (2 * BLOCK)


@pytest.mark.rule("MEM-D-14")
def test_device_reset_keeps_the_content_of_plugged_blocks(
    device: VirtioMem, driver: MemDriver, memory: GuestMemory
) -> None:
    driver.plug(5, 2)
    fill(memory, driver, 5, 2, b"k")

    device.reset()

    assert memory.read(driver.address(5), 2 * BLOCK) == b"k" * (2 * BLOCK)


@pytest.mark.rule("MEM-D-22")
def test_system_reset_gives_everything_back(make: Make, memory: GuestMemory) -> None:
    """Even what the guest wrote into unplugged and unusable blocks, in breach of MEM-V-6."""
    device = make(size=8 << 30)
    driver = MemDriver(device)
    driver.plug(5, 2)
    fill(memory, driver, 5, 2, b"k")
    device.region.view(device.usable_region_size + BLOCK, 8)[:] = b"stray..."

    device.system_reset()

    assert device.resident() == 0


def test_small_blocks_do_not_populate_their_neighbours(make: Make, memory: GuestMemory) -> None:
    device = make(block_size=MIB)
    driver = MemDriver(device)
    driver.plug(0)

    memory.write(driver.address(0), b"x")

    assert device.resident() == PAGE_SIZE


@pytest.mark.parametrize("length", [1, 4096, BLOCK])
def test_unplugged_block_is_not_ram_for_the_vmm(
    driver: MemDriver, memory: GuestMemory, length: int
) -> None:
    """Reference H-10: rings, buffers and loaders cannot populate what was given back."""
    with pytest.raises(GuestAddressError, match="unplugged memory of vmem0"):
        memory.view(driver.address(0), length)

    driver.plug(0)
    memory.view(driver.address(0), length)

    driver.unplug(0)
    with pytest.raises(GuestAddressError, match="unplugged memory of vmem0"):
        memory.view(driver.address(0), length)


def test_access_that_reaches_into_an_unplugged_block_is_refused(
    driver: MemDriver, memory: GuestMemory
) -> None:
    driver.plug(1, 2)

    memory.check(driver.address(1), 2 * BLOCK)
    for gpa, length in (
        (driver.address(1) - 1, 2),
        (driver.address(3) - 1, 2),
        (driver.address(0), 4 * BLOCK),
        (driver.address(3), 1),
    ):
        with pytest.raises(GuestAddressError):
            memory.check(gpa, length)


def test_hole_between_plugged_blocks_is_noticed(driver: MemDriver, memory: GuestMemory) -> None:
    driver.plug(0, 3)
    driver.unplug(1)

    with pytest.raises(GuestAddressError):
        memory.check(driver.address(0), 3 * BLOCK)


@pytest.mark.rule("MEM-D-19")
def test_last_byte_of_the_region_can_be_ram(make: Make, memory: GuestMemory) -> None:
    device = make(requested_size=1 << 30)
    driver = MemDriver(device)
    driver.plug(511)

    memory.write(device.window.end - 1, b"!")

    assert memory.read(device.window.end - 1, 1) == b"!"
