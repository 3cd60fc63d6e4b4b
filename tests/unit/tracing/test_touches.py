"""The first use of plugged memory is seen, by a host that looks now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.testing.driver import DeviceBench
from minivmm.testing.mem_bench import make_device
from minivmm.testing.mem_driver import MemDriver, by_queue
from minivmm.trace import Detail, Event
from minivmm.tracing.touches import INTERVAL, Touches
from minivmm.units import GIB, MIB

BLOCK = 2 * MIB


class Rig:
    """A driver that plugs, a clock that the test moves on, and a follower."""

    def __init__(self, device: VirtioMem, bench: DeviceBench) -> None:
        self.device = device
        self.bench = bench
        self.due: list[tuple[float, Callable[[], None]]] = []
        self.seen: list[Event] = []
        self.touches = Touches(
            bench.trace,
            {device.identifier: device},
            lambda seconds, look: self.due.append((seconds, look)),
        )
        self.driver = MemDriver(device, by_queue(bench.driver))
        self.stop = bench.trace.follow(self.seen.append, Detail.MEMORY)

    def touch(self, block: int) -> None:
        self.device.region.view(block * BLOCK + 4096, 1)[0] = 1

    def look(self) -> list[tuple[int, int]]:
        """Time passes; (first block, count) of what turned out to be touched."""
        self.seen.clear()
        due, self.due = self.due, []
        for seconds, look in due:
            assert seconds == INTERVAL
            look()
        return [
            (
                (event.fields["gpa"] - self.device.window.base) // BLOCK,  # type: ignore[operator]
                event.fields["size"] // BLOCK,  # type: ignore[operator]
            )
            for event in self.seen
            if event.name == "memory"
        ]


@pytest.fixture
def rig() -> Iterator[Rig]:
    device = make_device(size=GIB, requested_size=GIB, thp="off")
    with DeviceBench(device) as bench:
        bench.driver.start()
        yield Rig(device, bench)


def test_blocks_are_told_once_they_have_pages(rig: Rig) -> None:
    rig.driver.plug(0, 8)
    assert rig.look() == []

    for block in (2, 3, 6):
        rig.touch(block)
    assert rig.look() == [(2, 2), (6, 1)]

    rig.touch(2)
    rig.touch(7)
    assert rig.look() == [(7, 1)]


def test_event_says_what_was_touched(rig: Rig) -> None:
    rig.driver.plug(4, 1)
    rig.touch(4)
    rig.look()

    (event,) = rig.seen
    assert (event.source, event.name) == (rig.device.identifier, "memory")
    assert event.fields == {
        "what": "touched",
        "gpa": rig.device.window.base + 4 * BLOCK,
        "size": BLOCK,
    }


def test_nobody_looks_when_all_is_touched(rig: Rig) -> None:
    rig.driver.plug(0, 1)
    rig.touch(0)

    assert rig.look() == [(0, 1)]
    assert rig.due == []


def test_unplugged_blocks_are_not_waited_for(rig: Rig) -> None:
    rig.driver.plug(0, 2)
    rig.driver.unplug(0, 1)
    rig.touch(1)

    assert rig.look() == [(1, 1)]
    assert rig.due == []


def test_nothing_is_looked_at_unless_somebody_follows(rig: Rig) -> None:
    rig.stop()

    rig.driver.plug(0, 2)

    assert rig.due == []


def test_looking_ends_with_the_last_follower(rig: Rig) -> None:
    rig.driver.plug(0, 2)
    rig.stop()

    assert rig.look() == []
    assert rig.due == []


def test_memory_that_the_host_allocates_itself_is_not_looked_at() -> None:
    device = make_device(size=GIB, requested_size=GIB, prealloc=True)
    with DeviceBench(device) as bench:
        bench.driver.start()
        rig = Rig(device, bench)
        rig.driver.plug(0, 2)

        assert rig.due == []
