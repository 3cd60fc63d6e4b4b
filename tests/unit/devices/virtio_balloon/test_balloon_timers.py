"""Found by scripts/fuzz: drivers that come and go made the host keep a timer for each of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from minivmm.devices.virtio_balloon.device import VirtioBalloon
from minivmm.devices.virtio_balloon.spec import VirtioBalloonSpec
from minivmm.spec.virtio_balloon import Queue
from minivmm.testing.driver import DeviceBench
from minivmm.virtio.errands import Inline


class Timers(Inline):
    def __init__(self) -> None:
        self.running: list[Callable[[], None]] = []

    def later(self, seconds: float, look: Callable[[], None]) -> None:
        self.running.append(look)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_drivers_that_come_and_go_leave_one_timer(packed: bool) -> None:
    timers = Timers()
    device = VirtioBalloon(VirtioBalloonSpec(guest_stats_polling_interval=60, packed=packed))
    with DeviceBench(device) as bench:
        device.use(timers)
        for _ in range(10):
            bench.driver.start()
        for _ in range(10):
            bench.driver.reset_queue(Queue.STATS)
            bench.driver.setup_queue(Queue.STATS)

        assert len(timers.running) == 1
        bench.driver.queues[Queue.STATS].add([bytes(10)])
        bench.driver.kick(Queue.STATS)
        bench.driver.queues[Queue.STATS].collect()
        bench.driver.queues[Queue.STATS].add([bytes(10)])
        timers.running.pop()()
        assert len(bench.driver.queues[Queue.STATS].collect()) == 1, "the driver was not asked"
        assert len(timers.running) == 1


def test_another_interval_holds_from_now_on_and_the_old_timer_ends() -> None:
    timers = Timers()
    device = VirtioBalloon(VirtioBalloonSpec(guest_stats_polling_interval=60))
    with DeviceBench(device) as bench:
        device.use(timers)
        bench.driver.start()
        device.statistics.poll_every(1)
        old, new = timers.running
        timers.running.clear()

        old()
        assert not timers.running
        new()
        assert len(timers.running) == 1


def test_no_timer_is_left_for_a_driver_that_is_gone() -> None:
    timers = Timers()
    device = VirtioBalloon(VirtioBalloonSpec(guest_stats_polling_interval=60))
    with DeviceBench(device) as bench:
        device.use(timers)
        bench.driver.start()
        bench.driver.reset()
        timers.running.pop()()

        assert not timers.running
