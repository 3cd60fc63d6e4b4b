"""The hostile catalogue (reference C.7), rings: indices, laps, placement, sizes, suppression."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from minivmm.spec import virtio
from minivmm.spec.virtio import DescriptorFlags, EventFlags, Feature, PackedFlags
from minivmm.testing.buffers import RingDriver
from minivmm.testing.mem_ordeal import UNPLUGGED, MemOrdeal
from minivmm.testing.ordeal import Ordeal, Outcome
from minivmm.testing.packed_ring import PackedDriver
from minivmm.testing.raw_ring import Raw
from minivmm.testing.ring import SplitDriver
from minivmm.units import MIB

ANSWERED, IGNORED, BROKEN = Outcome.ANSWERED, Outcome.IGNORED, Outcome.BROKEN
NEXT, WRITE, TABLE = (int(flag) for flag in DescriptorFlags)
AVAIL, USED = PackedFlags.AVAIL, PackedFlags.USED
EVENT_IDX = Feature.EVENT_IDX.mask
RAM_END = 16 * MIB
SIZE = 128

MakeOrdeal = Callable[..., MemOrdeal]


def split_ring(ordeal: Ordeal) -> SplitDriver:
    ring = ordeal.driver.queues[0]
    assert isinstance(ring, SplitDriver)
    return ring


def packed_ring(ordeal: Ordeal) -> PackedDriver:
    ring = ordeal.driver.queues[0]
    assert isinstance(ring, PackedDriver)
    return ring


# -- indices and laps ------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [SIZE + 1, 0x8000, 0xFF00, 0xFFFF])
def test_avail_index_that_jumps(split: MemOrdeal, index: int) -> None:
    split_ring(split).set_avail_idx(index)
    split.check(BROKEN, f"avail.idx {index} after 0")


@pytest.mark.parametrize("back", [1, SIZE, 0x7FFF])
def test_avail_index_that_goes_back(split: MemOrdeal, back: int) -> None:
    for _ in range(3):
        split.raw.offer(split.question(), split.room())
    split.kick()
    split_ring(split).set_avail_idx(3 - back)
    split.check(BROKEN, "more than 128 descriptors")


def test_whole_ring_available_at_once(ordeal: MemOrdeal) -> None:
    """As many as fit are no jump; all of them are answered."""
    asked, reply = ordeal.question(), ordeal.room()
    table = ordeal.raw.table(asked, reply)
    gpa = ordeal.put(table)
    ordeal.raw.grant(reply)
    for number in range(SIZE):
        ordeal.raw.offer(Raw(gpa, len(table), TABLE), identifier=number)
    assert ordeal.check(ANSWERED) == [(number, 10) for number in range(SIZE)]


@pytest.mark.parametrize("flags", [0, int(USED), int(AVAIL | USED)])
def test_slots_of_another_lap(packed_one: MemOrdeal, flags: int) -> None:
    """Nothing is available, whatever else the descriptors say."""
    for slot in range(SIZE):
        packed_one.driver.queues[0].set_descriptor(slot, 1 << 63, 1, 0xFFFF, flags | NEXT)
    packed_one.check(IGNORED)


@pytest.mark.parametrize("flags", [0, int(USED), int(AVAIL | USED)])
def test_list_with_a_slot_of_another_lap(packed_one: MemOrdeal, flags: int) -> None:
    """Its first descriptor must be stored last, so the others must be available by then."""
    ring = packed_ring(packed_one)
    packed_one.raw.offer(packed_one.question(), packed_one.room())
    there = ring.descriptor(1)
    ring.set_descriptor(1, there.addr, there.len, 0, WRITE | flags)
    packed_one.check(BROKEN, "runs into descriptor 1, which is not available")


def test_used_descriptor_that_is_made_available_again(packed_one: MemOrdeal) -> None:
    """Behind the device's back: it is a lap further already, and comes to see it then."""
    packed_one.raw.offer(packed_one.question(), packed_one.room())
    packed_one.kick()
    assert len(packed_one.raw.used()) == 1
    ring = packed_ring(packed_one)
    ring.set_descriptor(0, 1 << 63, 1, 0, AVAIL)
    packed_one.raw.offer(packed_one.question(), packed_one.room())
    assert len(packed_one.check(ANSWERED)) == 1


def test_next_lap_before_this_one_is_over(packed_one: MemOrdeal) -> None:
    """All slots say that they are available in lap 2: not now, and lap 1 waits for its own."""
    ring = packed_ring(packed_one)
    for slot in range(SIZE):
        ring.set_descriptor(slot, 0x8000, 1, 0, USED)
    packed_one.check(IGNORED)


def test_same_head_twice(split: MemOrdeal) -> None:
    split.raw.offer(split.question(), split.room())
    split_ring(split).offer(0)
    assert split.check(ANSWERED) == [(0, 10), (0, 10)]


def test_same_buffer_id_twice(packed_one: MemOrdeal) -> None:
    for _ in range(2):
        packed_one.raw.offer(packed_one.question(), packed_one.room(), identifier=5)
    assert packed_one.check(ANSWERED) == [(5, 10), (5, 10)]


@pytest.mark.parametrize("packed", [False, True])
def test_more_in_flight_than_the_ring_has(
    make_any_ordeal: Callable[..., Ordeal], packed: bool
) -> None:
    """The console holds receive buffers until there is input; a driver adds one too many."""
    ordeal = make_any_ordeal("console-input", packed=packed)
    for _ in range(16):
        ordeal.raw.offer(Raw(ordeal.put(bytes(64)), 64, WRITE))
    ordeal.kick()
    assert ordeal.raw.used() == []
    ordeal.raw.offer(Raw(0x8000, 64, WRITE))
    ordeal.check(BROKEN, "16 in flight|0 free descriptors")


@pytest.mark.parametrize("flags", [0x08, 0x70, 0x7F78, 0x7F00])
def test_reserved_flags_of_descriptors_mean_nothing(ordeal: MemOrdeal, flags: int) -> None:
    asked, reply = ordeal.question(), ordeal.room()
    ordeal.raw.offer(Raw(asked.gpa, 24, flags), Raw(reply.gpa, 10, WRITE | flags))
    ordeal.expect_answer(reply)


# -- what the driver scribbles into the device's part ----------------------------------------------


@pytest.mark.parametrize("filler", [b"\xff", b"\x01", b"\x80"])
def test_used_ring_and_device_event_are_not_believed(ordeal: MemOrdeal, filler: bytes) -> None:
    layout = ordeal.driver.queues[0].layout
    size = virtio.EventSuppression.SIZE if ordeal.packed else virtio.used_ring_size(SIZE)
    reply = ordeal.room()
    ordeal.raw.offer(ordeal.question(), reply)
    ordeal.bench.memory.write(layout.device, filler * size)
    ordeal.kick()
    ordeal.raw.used()
    assert ordeal.bench.memory.read(reply.gpa, 10) == UNPLUGGED
    if not ordeal.packed:
        assert split_ring(ordeal).used_idx == 1
    ordeal.check(None)


# -- event suppression -----------------------------------------------------------------------------

WORDS = [0, 1, 2, 3, 4, 0x7F, SIZE - 1, SIZE, 0x7FFF, 0x8000, 0x8001, 0xFFFE, 0xFFFF]


def suppress(ring: RingDriver, word: int, flags: int) -> None:
    if isinstance(ring, PackedDriver):
        ring.set_driver_event(word, flags)
    else:
        assert isinstance(ring, SplitDriver)
        ring.memory.write(ring.layout.driver, flags.to_bytes(2, "little"))
        ring.set_used_event(word)


@pytest.mark.parametrize("without", [0, EVENT_IDX], ids=["event-idx", "flags-only"])
@pytest.mark.parametrize("flags", [0, 1, 2, 3, 0x8000, 0xFFFC, 0xFFFF])
def test_garbage_in_event_suppression(make_ordeal: MakeOrdeal, flags: int, without: int) -> None:
    """Requests are answered with all of it, and cost at most an interrupt each."""
    ordeal = make_ordeal(without=without)
    asked, reply = ordeal.question(), ordeal.room()
    for word in WORDS:
        suppress(ordeal.driver.queues[0], word, flags)
        ordeal.raw.offer(asked, reply)
        ordeal.bench.irq.take()
        ordeal.kick()
        assert len(ordeal.bench.irq.take()) <= 1
        assert len(ordeal.raw.used()) == 1
    ordeal.raw.offer(asked, reply)
    ordeal.check(ANSWERED)


# -- sizes -----------------------------------------------------------------------------------------


def test_queue_of_one(make_ordeal: MakeOrdeal) -> None:
    ordeal = make_ordeal(size=1)
    reply = ordeal.room()
    ordeal.offer_table(ordeal.question(), reply)
    ordeal.expect_answer(reply)


def test_chain_of_two_in_a_queue_of_one(make_ordeal: MakeOrdeal) -> None:
    ordeal = make_ordeal(size=1)
    ordeal.raw.offer(Raw(ordeal.question().gpa, 24, NEXT))
    ordeal.check(BROKEN, "loop|out of the table|longer than the 1 free")


@pytest.mark.parametrize("jump", [2, 0xFFFF])
def test_jump_in_a_queue_of_one(make_any_ordeal: Callable[..., MemOrdeal], jump: int) -> None:
    split = make_any_ordeal(packed=False, size=1)
    split_ring(split).set_avail_idx(jump)
    split.check(BROKEN, "more than 1 descriptors")


def test_largest_queue(make_ordeal: MakeOrdeal) -> None:
    ordeal = make_ordeal(size=32768)
    reply = ordeal.room()
    ordeal.raw.offer(ordeal.question(), reply)
    ordeal.expect_answer(reply)


def test_largest_queue_filled_with_garbage(make_ordeal: MakeOrdeal) -> None:
    """Every slot is a chain of its own: the first one breaks the device, at no further cost."""
    ordeal = make_ordeal(size=32768)
    for _ in range(32768):
        ordeal.raw.offer(Raw(0x8000, 1))
    ordeal.check(BROKEN, "needs 24 and 10")


@pytest.mark.parametrize("jump", [32769, 0xFFFF])
def test_jump_in_the_largest_queue(make_any_ordeal: Callable[..., MemOrdeal], jump: int) -> None:
    split = make_any_ordeal(packed=False, size=32768)
    split_ring(split).set_avail_idx(jump)
    split.check(BROKEN, "more than 32768 descriptors")


@pytest.mark.parametrize("event", [EventFlags.ENABLE, EventFlags.DISABLE, 3])
def test_bells_without_end(ordeal: MemOrdeal, event: int) -> None:
    """An empty ring costs next to nothing each time (SPL-D-10)."""
    suppress(ordeal.driver.queues[0], 0, event)

    def ring_on() -> None:
        for _ in range(1000):
            ordeal.kick()

    ordeal.check(IGNORED, act=ring_on)
