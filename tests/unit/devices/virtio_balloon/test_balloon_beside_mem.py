"""A balloon and a virtio-mem device in one machine: neither discards what is the other's."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from minivmm.devices.virtio_balloon.device import VirtioBalloon
from minivmm.devices.virtio_balloon.spec import VirtioBalloonSpec
from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.memory.layout import Window
from minivmm.memory.region import Region
from minivmm.spec.virtio import DeviceStatus
from minivmm.spec.virtio_balloon import Queue
from minivmm.spec.virtio_mem import ResponseType
from minivmm.testing.driver import DeviceBench
from minivmm.testing.fake_queue import FakeSignals
from minivmm.testing.mem_driver import MemDriver
from minivmm.units import GIB, MIB

PAGE = 4096
BLOCK = 2 * MIB
BASE = 4 * GIB


class Rig:
    """A driver of a balloon, and one of a device with 16 blocks of which the first two are plugged
    and full."""

    def __init__(self, bench: DeviceBench, balloon: VirtioBalloon) -> None:
        self.bench = bench
        self.balloon = balloon
        spec = VirtioMemSpec(size=16 * BLOCK, block_size=BLOCK, requested_size=16 * BLOCK)
        self.device = VirtioMem(spec, Window(BASE, spec.size), Region(spec.size))
        self.device.attach(bench.memory, FakeSignals())
        self.memory_driver = MemDriver(self.device)
        assert self.memory_driver.plug(0, 2) == ResponseType.ACK
        self.fill(0, 2)

    def fill(self, block: int, count: int = 1) -> None:
        self.bench.memory.write(BASE + block * BLOCK, b"\xaa" * (count * BLOCK))

    def inflate(self, *offsets: int) -> None:
        """Put the pages at these offsets of the region into the balloon."""
        pages = struct.pack(f"<{len(offsets)}I", *(BASE + at >> 12 for at in offsets))
        assert len(self.bench.driver.submit(Queue.INFLATE, pages)) == 1

    def report(self, offset: int, length: int) -> None:
        self.bench.driver.queues[Queue.REPORTING].add_at([(BASE + offset, length)])
        self.bench.driver.kick(Queue.REPORTING)

    def resident(self, offset: int, length: int) -> int:
        return self.device.region.resident_in(offset, length)

    def counts(self) -> tuple[int, int]:
        """Pages freed and refused."""
        return self.balloon.pages.freed // PAGE, self.balloon.pages.refused // PAGE


@pytest.fixture
def rig() -> Iterator[Rig]:
    balloon = VirtioBalloon(VirtioBalloonSpec(free_page_reporting=True))
    with DeviceBench(balloon) as bench:
        bench.driver.start()
        yield Rig(bench, balloon)


def test_plugged_memory_is_ram_that_can_be_ballooned(rig: Rig) -> None:
    rig.inflate(0, PAGE, BLOCK + PAGE)

    assert rig.counts() == (3, 0)
    assert rig.resident(0, 2 * PAGE) == 0
    assert rig.resident(0, 2 * BLOCK) == 2 * BLOCK - 3 * PAGE


def test_unplugged_memory_is_refused_neither_populated_nor_discarded(rig: Rig) -> None:
    rig.inflate(2 * BLOCK, 2 * BLOCK - PAGE, 15 * BLOCK)

    assert rig.counts() == (1, 2)
    assert rig.resident(2 * BLOCK, 14 * BLOCK) == 0
    assert "unplugged memory of vmem0" in str(rig.bench.events("refused")[0].fields["why"])
    assert rig.device.intruders.count == 0, "nothing of it was touched"
    assert DeviceStatus.NEEDS_RESET not in rig.bench.driver.status


def test_reports_of_plugged_memory_are_taken_and_of_unplugged_memory_break_the_balloon(
    rig: Rig,
) -> None:
    rig.report(BLOCK, BLOCK)
    freed = rig.balloon.pages.freed

    rig.report(BLOCK, 2 * BLOCK)

    assert freed == BLOCK
    assert rig.balloon.pages.freed == freed
    assert DeviceStatus.NEEDS_RESET in rig.bench.driver.status
    assert rig.resident(2 * BLOCK, 14 * BLOCK) == 0
    assert rig.memory_driver.plug(2) == ResponseType.ACK


def test_ballooned_pages_of_a_block_that_is_unplugged_are_forgotten_with_it(rig: Rig) -> None:
    rig.inflate(0, PAGE)
    rig.bench.driver.write(4, 4, 4, 2)

    assert rig.memory_driver.unplug(0) == ResponseType.ACK
    rig.bench.driver.submit(Queue.DEFLATE, struct.pack("<2I", BASE >> 12, (BASE >> 12) + 1))
    assert rig.resident(0, BLOCK) == 0
    assert rig.memory_driver.plug(0) == ResponseType.ACK
    rig.fill(0)

    assert rig.resident(0, BLOCK) == BLOCK
    assert rig.bench.memory.read(BASE, BLOCK) == b"\xaa" * BLOCK
    assert rig.balloon.actual == 2, "how many pages are in the balloon is the driver's knowledge"


def test_a_block_that_is_just_being_unplugged_is_refused(rig: Rig) -> None:
    rig.device.state.leaving = ((0, BLOCK),)

    rig.inflate(0, BLOCK)

    assert rig.counts() == (1, 1)
    assert rig.resident(0, PAGE) == PAGE


def test_the_plugged_size_is_not_the_balloons_business(rig: Rig) -> None:
    rig.inflate(*range(0, BLOCK, PAGE))

    assert rig.device.plugged_size == 2 * BLOCK
    assert rig.resident(0, BLOCK) == 0
    assert rig.memory_driver.unplug(0, 2) == ResponseType.ACK
