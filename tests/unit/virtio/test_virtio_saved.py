"""The saved state of a virtio-pci function: what is in it, what is refused, what it means to hold.

That drivers cannot tell a move is shown for random lives by tests/property/test_moving.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from construct import Container

from minivmm.errors import BadState
from minivmm.spec.virtio import DeviceStatus, Feature
from minivmm.testing.fuzz_case import take
from minivmm.testing.fuzz_guest import FuzzGuest
from minivmm.testing.fuzz_world import Setup, World
from minivmm.testing.moving import go_on, move, still
from minivmm.virtio.pci import VirtioPciFunction
from minivmm.virtio.queue.chain import ChainState
from minivmm.virtio.queue.ring import RingState
from minivmm.virtio.saved_forms import CHAIN, FUNCTION, RING

EVERYTHING = (1 << 64) - 1
CHAIN_STATE = ChainState(3, 1, 2, False, 0, ((0x20_0000, 16),), ((0x20_1000, 10),))


class Rig:
    """A machine with a device, and its driver, started with rings of 8."""

    def __init__(self, device: str, **options: object) -> None:
        self.world = World(Setup(device, {"packed": False} | options))
        self.guests = [FuzzGuest(self.world, f, n) for n, f in enumerate(self.world.functions)]
        self.driver = self.guests[0]
        self.driver.begin(EVERYTHING, 0xFF, 8, 0, 1)

    @property
    def function(self) -> VirtioPciFunction:
        return self.world.functions[0]

    def move(self) -> None:
        take(self.world, self.guests, ("move",))

    def offer(self, data: bytes, room: int, *, kick: bool = True) -> None:
        self.driver.queues[0].add([data], [room])
        if kick:
            self.driver.bell(0, 0, None, None)

    def collect(self) -> list[bytes]:
        return [used.data for used in self.driver.queues[0].collect()]


MakeRig = Callable[..., Rig]


@pytest.fixture
def make_rig() -> Iterator[MakeRig]:
    rigs: list[Rig] = []

    def make(device: str = "echo", **options: object) -> Rig:
        rigs.append(Rig(device, **options))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.world.close()


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def rig(request: pytest.FixtureRequest, make_rig: MakeRig) -> Rig:
    return make_rig(packed=request.param)


# -- going on --------------------------------------------------------------------------------------


def test_rings_go_on_where_they_were(rig: Rig) -> None:
    for number in range(30):  # some laps
        rig.offer(bytes([number]), 1)
        assert rig.collect() == [bytes([number])]
        if number % 7 == 3:
            rig.move()


def test_request_whose_doorbell_was_lost_is_served_after_a_move(rig: Rig) -> None:
    rig.offer(b"quiet", 5, kick=False)
    rig.move()

    assert rig.collect() == [b"quiet"]


def test_interrupts_that_were_due_come_once_they_are_not_masked(rig: Rig) -> None:
    control = rig.driver.msix_capability
    rig.driver.set_msix_control(0xC000)  # enabled, all masked
    rig.offer(b"a", 1)
    rig.move()
    assert not rig.world.irq.messages

    rig.driver.set_msix_control(0x8000)

    assert control
    assert [data for _, data in rig.world.irq.messages] == [1]


def test_pin_is_asserted_in_the_new_machine_as_it_was_in_the_old(make_rig: MakeRig) -> None:
    rig = make_rig(vectors=0)
    rig.offer(b"a", 1)
    (line,) = [line for line in rig.world.irq.lines.values() if line.level]
    rig.move()

    assert [one.level for one in rig.world.irq.lines.values()].count(True) == 1
    assert rig.driver.isr() == 1
    assert not any(one.level for one in rig.world.irq.lines.values())
    assert line.level, "the old machine is not touched"


def test_broken_device_stays_broken_and_is_healed_by_a_reset(rig: Rig) -> None:
    rig.driver.descriptors(0, [(("end", 64), 8, 0, 0)], 1)
    trouble = rig.function.transport.trouble
    assert trouble
    rig.move()

    assert rig.function.transport.trouble == trouble
    assert DeviceStatus.NEEDS_RESET in rig.driver.status
    rig.driver.begin(EVERYTHING, 0xFF, 8, 0, 1)
    rig.offer(b"again", 5)
    assert rig.collect() == [b"again"]


# -- standing still --------------------------------------------------------------------------------


def test_nothing_is_taken_from_a_queue_that_is_held(rig: Rig) -> None:
    still(rig.world)
    with rig.world.memory.untouched("while it is held"):
        rig.function.transport.kick_all()
    rig.offer(b"later", 5)
    assert rig.collect() == []

    go_on(rig.world)

    assert rig.collect() == [b"later"]


def test_what_is_at_work_is_answered_although_the_queue_is_held(make_rig: MakeRig) -> None:
    rig = make_rig("blk")
    header = bytes(8) + bytes(8)  # IN, sector 0
    rig.offer(header, 513)
    rig.offer(header, 513)
    rig.function.transport.hold(True)
    assert rig.collect() == []

    rig.world.errands[0].work_off()

    assert len(rig.collect()) == 1, "the one that was at work, and no other"
    go_on(rig.world)
    rig.world.calm()
    assert len(rig.collect()) == 1


def test_what_ended_while_nobody_could_be_told_is_answered_when_held(make_rig: MakeRig) -> None:
    """The job is over, but its answer waits for bus mastering: no state may be taken before it."""
    rig = make_rig("blk")
    rig.offer(bytes(16), 513)
    rig.driver.command(2)  # bus mastering off
    rig.world.errands[0].work_off()
    assert rig.function.device.inspect()["at-work"] == 1

    rig.function.transport.hold(True)

    assert rig.function.device.inspect()["at-work"] == 0


# -- forms -----------------------------------------------------------------------------------------


def test_overlay_of_chains_agrees_with_its_form() -> None:
    state = RingState(7, 6, True, (CHAIN_STATE, CHAIN_STATE))
    ring = RING.build(state)
    one = CHAIN.build(
        {
            "head": 3,
            "slots": 1,
            "descriptors": 2,
            "done": False,
            "written": 0,
            "readable_count": 1,
            "writable_count": 1,
            "readable": [{"gpa": 0x20_0000, "length": 16}],
            "writable": [{"gpa": 0x20_1000, "length": 10}],
        }
    )

    assert ring[5:] == (2 * len(one)).to_bytes(4, "little") + one + one
    assert RING.parse(ring) == state


# -- what is refused -------------------------------------------------------------------------------

Damage = Callable[[Any], None]


def ring_of(saved: Any, **changes: Any) -> None:
    ring = saved.transport.queues[0].ring
    values = {name: getattr(ring, name) for name in RingState.__slots__} | changes
    saved.transport.queues[0].ring = RingState(**values)


def chain(**changes: Any) -> ChainState:
    values = {name: getattr(CHAIN_STATE, name) for name in ChainState.__slots__} | changes
    return ChainState(**values)


def one_in_flight(saved: Any, **changes: Any) -> None:
    used = saved.transport.queues[0].ring.next_used
    ring_of(saved, next_avail=used + 1, chains=(chain(**changes),))


def set_config(saved: Any, at: int, value: int) -> None:
    config = bytearray(saved.pci.config)
    config[at] = value
    saved.pci.config = bytes(config)


DAMAGES: dict[str, tuple[str, Damage]] = {
    "another vendor": ("configuration byte 0x00", lambda s: set_config(s, 0, 0x86)),
    "a BAR of another size": ("configuration byte", lambda s: set_config(s, 0x11, 0x01)),
    "too few BARs": ("BARs", lambda s: s.pci.decoded.pop()),
    "status bit": ("status", lambda s: vars_of(s.transport, status=0x2F)),
    "no FEATURES_OK": ("status", lambda s: vars_of(s.transport, status=4)),
    "features not offered": (
        "features",
        lambda s: vars_of(s.transport, driver_features=s.transport.driver_features | 1 << 60),
    ),
    "features of nobody": (
        "features",
        lambda s: vars_of(s.transport, driver_features=Feature.VERSION_1.mask),
    ),
    "VERSION_1 missing": ("features", lambda s: vars_of(s.transport, driver_features=1)),
    "a queue less": ("queues", lambda s: s.transport.queues.pop()),
    "ring of a queue that is off": (
        "queue 0",
        lambda s: vars_of(s.transport.queues[0], enabled=False),
    ),
    "no ring": ("queue 0", lambda s: vars_of(s.transport.queues[0], ring=None)),
    "ring of a broken device": ("queue 0", lambda s: vars_of(s.transport, status=0x4F)),
    "enabled before features": ("queue 0", lambda s: vars_of(s.transport, status=3)),
    "ISR": ("ISR", lambda s: vars_of(s, isr=4)),
    "vector of the queue": ("vector", lambda s: s.common.queue_vectors.__setitem__(0, 3)),
    "vector of the configuration": ("vector", lambda s: vars_of(s.common, config_vector=77)),
    "a queue's vector less": ("queue vectors", lambda s: s.common.queue_vectors.pop()),
    "MSI-X missing": ("MSI-X", lambda s: vars_of(s, msix=None)),
    "MSI-X table": ("MSI-X table", lambda s: vars_of(s.msix, table=bytes(16))),
    "MSI-X pending": ("MSI-X pending", lambda s: vars_of(s.msix, pending=8)),
    "size": ("rings", lambda s: vars_of(s.transport.queues[0], size=128)),
    "misaligned": (
        "rings",
        lambda s: s.transport.queues[0].addresses.__setitem__(0, 0x20_0001),
    ),
    "chains missing": ("rings", lambda s: ring_of(s, next_avail=9)),
    "done, and not handed back": ("rings", lambda s: one_in_flight(s, done=True)),
    "more slots than the ring": ("rings", lambda s: one_in_flight(s, slots=9)),
    "no slots": ("rings", lambda s: one_in_flight(s, slots=0)),
    "empty buffer": ("rings", lambda s: one_in_flight(s, readable=((0, 0),))),
    "longer than 4 GiB": (
        "rings",
        lambda s: one_in_flight(s, readable=((0, 0xFFFF_FFFF),) * 2),
    ),
}


def vars_of(container: Any, **changes: Any) -> None:
    container.update(changes)


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_no_guest_can_cause_is_refused(make_rig: MakeRig, damage: str) -> None:
    rig = make_rig()
    rig.offer(b"a", 1)
    still(rig.world)
    saved = FUNCTION.parse(rig.function.save_state())
    assert isinstance(saved, Container)
    field, act = DAMAGES[damage]
    act(saved)

    with pytest.raises(BadState, match=r"saved state of echo0: ") as caught:
        rig.function.load_state(FUNCTION.build(saved))

    assert caught.value.field.startswith(field)


def test_head_outside_of_the_table_is_refused(make_rig: MakeRig) -> None:
    rig = make_rig()
    saved = FUNCTION.parse(rig.function.save_state())
    one_in_flight(saved, head=8)

    with pytest.raises(BadState, match="head"):
        rig.function.load_state(FUNCTION.build(saved))


@pytest.mark.parametrize("position", [8, 0x8009])
def test_position_outside_of_a_packed_ring_is_refused(make_rig: MakeRig, position: int) -> None:
    rig = make_rig(packed=True)
    saved = FUNCTION.parse(rig.function.save_state())
    ring_of(saved, next_avail=position, next_used=position)

    with pytest.raises(BadState, match="position"):
        rig.function.load_state(FUNCTION.build(saved))


def test_ring_in_memory_that_is_gone_breaks_the_device_only_when_it_is_used(rig: Rig) -> None:
    """As in the machine that was saved: nobody looks at rings while loading."""
    saved = FUNCTION.parse(rig.function.save_state())
    saved.transport.queues[0].addresses[:] = [0x7000_0000_0000] * 3
    still(rig.world)
    with rig.world.memory.untouched("while loading"):
        rig.function.load_state(FUNCTION.build(saved))
    assert rig.function.transport.live

    go_on(rig.world)

    assert "not in guest RAM" in rig.function.transport.trouble
    assert rig.world.bugs == []


def test_state_is_loaded_again_before_the_start(rig: Rig) -> None:
    """The last one counts: a migration sends what it knows early, and again at the end."""
    early = rig.function.save_state()
    rig.offer(b"a", 1)
    still(rig.world)
    late = rig.function.save_state()

    for data in (early, late, early, late):
        rig.function.load_state(data)

    assert rig.function.save_state() == late
    go_on(rig.world)
    assert rig.collect() == [b"a"]


def test_restored_device_learns_of_it_once_and_when_it_goes_on(rig: Rig) -> None:
    told: list[bool] = []
    device = rig.function.device
    device.on_restored = lambda: told.append(True)  # type: ignore[method-assign]
    still(rig.world)
    go_on(rig.world)
    rig.function.load_state(rig.function.save_state())
    assert told == []

    go_on(rig.world)
    go_on(rig.world)

    assert told == [True]


def test_move_of_a_world_is_what_it_says(rig: Rig) -> None:
    """The tool of these tests: nothing of the old machine is in use afterwards."""
    old = [*rig.world.functions, rig.world.memory, rig.world.mmio, rig.world.mem]
    move(rig.world, rig.guests)

    new = [*rig.world.functions, rig.world.memory, rig.world.mmio, rig.world.mem]
    assert not any(one is other for one, other in zip(old, new, strict=True))
