"""A change of the configuration cannot be missed by a driver that reads it in pieces (PCI-D-11)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import pytest

from minivmm.devices.virtio_balloon.device import VirtioBalloon
from minivmm.devices.virtio_balloon.spec import VirtioBalloonSpec
from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.spec.virtio_mem import MemConfig
from minivmm.spec.virtio_pci import CapabilityType, CommonConfig
from minivmm.testing.driver import DeviceBench
from minivmm.testing.echo import EchoDevice
from minivmm.testing.mem_bench import make_device
from minivmm.testing.mem_driver import MemDriver
from minivmm.units import GIB, MIB

BLOCK = 2 * MIB
SIZE = MemConfig.SIZE
WIDE = [name for _, width, name in MemConfig.layout() if width == 8]


@pytest.fixture
def device() -> VirtioMem:
    return make_device(size=64 * GIB, requested_size=GIB)


def generation(bench: DeviceBench) -> int:
    return bench.driver.get("config_generation")


def config(bench: DeviceBench, offset: int, size: int) -> int:
    return bench.driver.read(CapabilityType.DEVICE, offset, size)


@pytest.mark.rule("PCI-D-11")
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_a_change_between_any_two_reads_shows(
    bench: DeviceBench, device: VirtioMem, width: int
) -> None:
    """As Linux reads: generation, all pieces, generation; the target moves after one of them."""
    for torn_after in range(SIZE // width):
        before = generation(bench)
        for piece in range(SIZE // width):
            config(bench, piece * width, width)
            if piece == torn_after:
                device.set_requested_size(device.requested_size ^ BLOCK)
        assert generation(bench) != before


@pytest.mark.rule("PCI-D-11")
@pytest.mark.parametrize("reads_between", [0, 1, 7])
@pytest.mark.parametrize("changes", [1, 2, 255, 256, 257, 512])
def test_changes_show_however_many_and_whatever_was_read_meanwhile(
    bench: DeviceBench, device: VirtioMem, changes: int, reads_between: int
) -> None:
    """A counter of 8 bits that moved with every change would be where it was after 256 of them."""
    before = generation(bench)
    for _ in range(changes):
        device.set_requested_size(device.requested_size ^ BLOCK)
        for _ in range(reads_between):
            config(bench, MemConfig.OFFSETS["requested_size"], 4)
    assert generation(bench) != before


@pytest.mark.rule("PCI-D-11")
def test_every_reader_sees_a_change_since_its_own_last_look(
    bench: DeviceBench, device: VirtioMem
) -> None:
    """Two that look in turns, as a driver's worker and sysfs may."""
    seen = [generation(bench), generation(bench)]
    for turn in range(600):
        device.set_requested_size(device.requested_size ^ BLOCK)
        now = generation(bench)
        assert now != seen[turn % 2]
        assert now != seen[1 - turn % 2]
        seen[turn % 2] = now


def resize(device: VirtioMem, driver: MemDriver) -> None:
    device.set_requested_size(8 * GIB)


def plug(device: VirtioMem, driver: MemDriver) -> None:
    driver.plug(3, 2)


def unplug(device: VirtioMem, driver: MemDriver) -> None:
    driver.unplug(0)


def unplug_all(device: VirtioMem, driver: MemDriver) -> None:
    driver.unplug_all()


def shrink(device: VirtioMem, driver: MemDriver) -> None:
    """Nothing is plugged, and only the usable region changes."""
    device.set_requested_size(0)


Change = Callable[[VirtioMem, MemDriver], None]


@pytest.mark.rule("PCI-D-11")
@pytest.mark.parametrize("change", [resize, plug, unplug, unplug_all, shrink])
def test_whatever_changes_the_memory_device_moves_the_generation(
    bench: DeviceBench, device: VirtioMem, driver: MemDriver, change: Change
) -> None:
    driver.plug(0, 2)
    before, bytes_before = generation(bench), device.config_space()

    change(device, driver)

    assert device.config_space() != bytes_before
    assert generation(bench) != before


@pytest.mark.rule("PCI-D-11")
def test_shrinking_without_a_plugged_block_moves_it_too(
    bench: DeviceBench, device: VirtioMem, driver: MemDriver
) -> None:
    device.set_requested_size(0)
    before = generation(bench)

    driver.unplug_all()

    assert device.usable_region_size == 0
    assert generation(bench) != before


@pytest.mark.rule("PCI-D-11")
def test_a_system_reset_moves_it(bench: DeviceBench, device: VirtioMem, driver: MemDriver) -> None:
    driver.plug(0, 2)
    before, bytes_before = generation(bench), device.config_space()

    bench.function.system_reset()
    bench.host.assign_bars()

    bench.driver.probe()
    assert device.config_space() != bytes_before
    assert generation(bench) != before


@pytest.mark.rule("PCI-D-11")
def test_a_new_target_of_the_balloon_moves_it() -> None:
    balloon = VirtioBalloon(VirtioBalloonSpec())
    with DeviceBench(balloon) as bench:
        bench.driver.start()
        before = generation(bench)

        balloon.set_target(MIB)

        assert config(bench, 0, 4) == 256
        assert generation(bench) != before


@pytest.mark.rule("PCI-D-11")
def test_a_driver_that_reads_until_the_generation_stays_gets_one_moment(
    bench: DeviceBench, device: VirtioMem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host moves the target after each of the driver's first 300 reads."""
    moments = [MemConfig.parse(device.config_space())]
    left, read = [300], bench.driver.read

    def and_then_the_host_resizes(kind: CapabilityType, offset: int, size: int) -> int:
        value = read(kind, offset, size)
        if kind == CapabilityType.DEVICE and left[0]:
            left[0] -= 1
            device.set_requested_size(device.requested_size ^ (33 * GIB - BLOCK))
            moments.append(MemConfig.parse(device.config_space()))
        return value

    monkeypatch.setattr(bench.driver, "read", and_then_the_host_resizes)

    found = MemConfig.parse(bench.driver.read_config(SIZE))

    assert left == [0]
    assert found == moments[-1]


@pytest.mark.rule("PCI-D-11")
def test_a_look_by_configuration_space_counts_as_one() -> None:
    """Read by the PCI_CFG window, the generation moves with the next change as well."""
    device = EchoDevice()
    with DeviceBench(device) as bench:
        driver = bench.driver.start()
        window = next(
            at
            for at in range(0x40, 0x100, 4)
            if driver.read_pci(at, 1) == 0x09 and driver.read_pci(at + 3, 1) == CapabilityType.PCI
        )
        driver.write_pci(window + 8, 4, CommonConfig.OFFSETS["config_generation"])
        driver.write_pci(window + 12, 4, 1)
        seen = []
        for _ in range(4):
            seen.append(driver.read_pci(window + 16, 1))
            device.signals.config()
        assert all(one != other for one, other in combinations(seen, 2))


@pytest.mark.rule("PCI-D-4")
@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("order", [(0, 4), (4, 0)])
def test_halves_of_a_configuration_field_are_read_on_their_own(
    bench: DeviceBench, device: VirtioMem, name: str, order: tuple[int, int]
) -> None:
    at = MemConfig.OFFSETS[name]
    wanted = getattr(MemConfig.parse(device.config_space()), name)

    halves = {half: config(bench, at + half, 4) for half in order}

    assert halves[4] << 32 | halves[0] == wanted == config(bench, at, 8)


@pytest.mark.rule("PCI-D-4")
@pytest.mark.parametrize("name", ["queue_desc", "queue_driver", "queue_device"])
@pytest.mark.parametrize("half", [0, 4])
def test_writing_one_half_of_an_address_leaves_the_other(
    bench: DeviceBench, name: str, half: int
) -> None:
    driver, at = bench.driver, CommonConfig.OFFSETS[name]
    driver.reset()
    driver.set(name, 0x1111_1111_2222_2222)

    driver.write(CapabilityType.COMMON, at + half, 4, 0x3333_3333)

    other = 4 - half
    assert driver.read(CapabilityType.COMMON, at + half, 4) == 0x3333_3333
    assert driver.read(CapabilityType.COMMON, at + other, 4) == (0x1111_1111, 0x2222_2222)[half > 0]
