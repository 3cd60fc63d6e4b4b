"""The saved state of a balloon: what is under way goes on, by the driver's own buffers."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest

from minivmm.devices.virtio_balloon.device import VirtioBalloon
from minivmm.devices.virtio_balloon.saved import BALLOON
from minivmm.errors import BadState
from minivmm.spec.virtio_balloon import Queue, StatTag
from minivmm.testing.fuzz_case import take
from minivmm.testing.fuzz_guest import FuzzGuest
from minivmm.testing.fuzz_world import Setup, World
from minivmm.testing.moving import still
from minivmm.units import MIB

STATISTICS = struct.pack("<HQ", StatTag.MEMFREE, 4711)
EVERYTHING = (1 << 64) - 1


class Rig:
    def __init__(self, *, packed: bool = False, interval: int = 1) -> None:
        special = {"free_page_reporting": True, "guest_stats_polling_interval": interval}
        self.world = World(Setup("balloon", {"packed": packed}, special))
        self.guests = [FuzzGuest(self.world, f, n) for n, f in enumerate(self.world.functions)]
        self.driver = self.guests[0]
        features = self.driver.offered_features()
        self.driver.begin(features, 0b10111, 8, 0, 1)

    @property
    def device(self) -> VirtioBalloon:
        device = self.world.device
        assert isinstance(device, VirtioBalloon)
        return device

    def move(self) -> None:
        take(self.world, self.guests, ("move",))


MakeRig = Callable[..., Rig]


@pytest.fixture
def make_rig() -> Iterator[MakeRig]:
    rigs: list[Rig] = []

    def make(**options: object) -> Rig:
        rigs.append(Rig(**options))  # type: ignore[arg-type]
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.world.close()


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_statistics_are_asked_for_with_the_buffer_of_before(
    make_rig: MakeRig, packed: bool
) -> None:
    rig = make_rig(packed=packed)
    ring = rig.driver.queues[Queue.STATS]
    ring.add([STATISTICS])
    rig.driver.bell(2, 0, None, None)
    ring.collect()
    ring.add([STATISTICS])
    rig.driver.bell(2, 0, None, None)
    assert ring.collect() == []
    told = rig.device.statistics.to_json()

    rig.move()
    assert rig.device.statistics.to_json() == told
    assert ring.collect() == []
    rig.world.pass_time()

    assert len(ring.collect()) == 1, "the timer went on, and used the buffer"


def test_report_is_finished_by_the_new_process(make_rig: MakeRig) -> None:
    """A report of more than is done at once: what is left is left for the other side."""
    rig = make_rig(interval=0)
    rig.driver.queues[Queue.REPORTING].add_at([(2 * MIB, 3 * MIB)] * 8)
    rig.driver.bell(3, 0, None, None)
    assert rig.driver.queues[Queue.REPORTING].collect() == []
    before = rig.device.pages.freed

    rig.move()
    rig.world.calm()

    assert len(rig.driver.queues[Queue.REPORTING].collect()) == 1
    assert rig.device.pages.freed == 24 * MIB > before


def test_sizes_and_wishes_are_the_same(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.device.set_target(8 * 4096)
    rig.device.write_config(4, (5).to_bytes(4, "little"))
    seen = rig.device.inspect()

    rig.move()

    assert rig.device.inspect() == seen
    assert (rig.device.num_pages, rig.device.actual) == (8, 5)


def test_buffer_that_no_queue_has_is_refused(make_rig: MakeRig) -> None:
    rig = make_rig()
    still(rig.world)
    saved = BALLOON.parse(rig.device.save_state())
    saved.statistics.has_buffer = True
    rig.device.load_state(BALLOON.build(saved))

    with pytest.raises(BadState, match="buffer STATS: the queue has none in flight"):
        rig.world.functions[0].load_state(rig.world.functions[0].save_state())


@pytest.mark.parametrize("roles", [[0, 0, 2, 3, 4], [0, 1, 2, 3, 9]])
def test_queues_with_impossible_purposes_are_refused(make_rig: MakeRig, roles: list[int]) -> None:
    rig = make_rig()
    saved = BALLOON.parse(rig.device.save_state())
    saved.roles = roles

    with pytest.raises(BadState, match="each is for one purpose"):
        rig.device.load_state(BALLOON.build(saved))
