"""The packed ring, device side, against the driver side of minivmm.testing (reference C.2, C.4)."""

from collections.abc import Callable
from typing import Any

import pytest

from minivmm.errors import DeviceBroken
from minivmm.memory.guest import GuestMemory
from minivmm.memory.region import Region
from minivmm.spec.virtio import (
    DescriptorFlags,
    EventFlags,
    EventSuppression,
    Feature,
    PackedDescriptor,
    PackedFlags,
)
from minivmm.units import GIB, MIB
from minivmm.virtio.queue.packed import PackedQueue
from minivmm.virtio.queue.queue import QueueLayout
from minivmm.virtio.queue.ring import MAX_CHAIN_LENGTH

PACKED = Feature.RING_PACKED.mask
INDIRECT = Feature.INDIRECT_DESC.mask
EVENT_IDX = Feature.EVENT_IDX.mask
NEXT, WRITE, TABLE = DescriptorFlags.NEXT, DescriptorFlags.WRITE, DescriptorFlags.INDIRECT
AVAIL, USED = PackedFlags.AVAIL, PackedFlags.USED
RAM = 4 * MIB

MakePair = Callable[..., Any]


@pytest.fixture
def pair(make_pair: MakePair) -> Any:
    return make_pair(PACKED | INDIRECT)


@pytest.mark.parametrize("size", [1, 3, 7, 1000, 32767])
def test_size_need_not_be_a_power_of_two(make_pair: MakePair, size: int) -> None:
    pair = make_pair(PACKED | INDIRECT | EVENT_IDX, size=size)
    for n in range(20):
        pair.driver.add([bytes([n])], [1], direct=0)
        assert pair.driver.wants_kick()
        assert pair.echo()
        assert [used.data for used in pair.driver.collect()] == [bytes([n])]


def test_laps_with_chains_of_every_length(make_pair: MakePair) -> None:
    """Chains go across the ring's end in all ways there are, and wrap counters with them."""
    pair = make_pair(PACKED, size=7)
    for n in range(100):
        message = bytes(range(n % 6 + 1))
        pair.driver.add([message[i : i + 1] for i in range(len(message))], [16])
        pair.echo()
        assert [used.data for used in pair.driver.collect()] == [message]


@pytest.mark.rule("PKD-D-4", "PKD-D-6")
def test_one_used_descriptor_per_chain_then_its_other_slots_are_skipped(pair: Any) -> None:
    """PKD-D-6, PKD-D-4: nothing but the first slot changes."""
    first = pair.driver.add([b"a", b"b"], [2])
    second = pair.driver.add([b"c"], [1])
    before = [pair.driver.descriptor(n) for n in range(8)]
    pair.echo()
    after = [pair.driver.descriptor(n) for n in range(8)]
    assert (after[0].id, after[0].len, after[0].flags) == (first, 2, AVAIL | USED | WRITE)
    assert (after[3].id, after[3].len, after[3].flags) == (second, 1, AVAIL | USED | WRITE)
    assert [n for n in range(8) if before[n] != after[n]] == [0, 3]
    assert [used.head for used in pair.driver.collect()] == [first, second]


def test_used_descriptors_of_odd_laps_have_both_flags_and_others_none(pair: Any) -> None:
    for lap in range(4):
        for _ in range(8):
            pair.driver.add([b"x"])
            pair.echo()
        flags = {pair.driver.descriptor(n).flags for n in range(8)}
        assert flags == ({int(AVAIL | USED)} if lap % 2 == 0 else {0})
        assert len(pair.driver.collect()) == 8


@pytest.mark.rule("PKD-D-1")
def test_chains_completed_out_of_order_use_slots_in_order_of_completion(pair: Any) -> None:
    """PKD-D-1: the used descriptor of the second chain comes first, and may overwrite the first."""
    first = pair.driver.add([b"1"], [1])
    second = pair.driver.add([b"2", b"3"], [2])
    one, two = pair.queue.chains()
    pair.queue.complete(two, 2)
    pair.queue.publish()
    assert pair.driver.descriptor(0).id == second
    assert [used.head for used in pair.driver.collect()] == [second]
    pair.queue.complete(one, 1)
    pair.queue.publish()
    assert [used.head for used in pair.driver.collect()] == [first]


def test_chain_without_written_bytes_has_no_write_flag(pair: Any) -> None:
    pair.driver.add([b"a"], [1])
    pair.queue.complete(pair.queue.pop(), 0)
    pair.queue.publish()
    assert pair.driver.descriptor(0).flags == AVAIL | USED


def test_buffer_id_is_that_of_the_last_descriptor(pair: Any) -> None:
    pair.driver.set_descriptor(1, 0x2000, 1, 0x7777, AVAIL)
    pair.driver.set_descriptor(0, 0x1000, 1, 0x1111, AVAIL | NEXT)
    pair.echo()
    assert pair.driver.descriptor(0).id == 0x7777


@pytest.mark.rule("PKD-D-3")
def test_descriptor_is_available_by_its_flags_alone(pair: Any) -> None:
    """PKD-D-3: AVAIL as the wrap counter, USED as its inverse."""
    for flags in (0, USED, AVAIL | USED):
        pair.driver.set_descriptor(0, 0x1000, 1, 0, flags)
        assert pair.queue.pop() is None
    pair.driver.set_descriptor(0, 0x1000, 1, 0, AVAIL)
    assert pair.queue.pop() is not None


@pytest.mark.rule("PKD-D-7")
def test_flags_of_table_entries_mean_nothing_but_write(pair: Any) -> None:
    """PKD-D-7, and WRITE on the descriptor of the table is ignored."""
    odd = int(NEXT | TABLE | AVAIL)
    pair.memory.write(0x1000, b"ab")
    entries = PackedDescriptor(0x1000, 2, 9, odd), PackedDescriptor(0x2000, 2, 9, odd | WRITE)
    pair.memory.write(0x8000, b"".join(entry.build() for entry in entries))
    pair.driver.set_descriptor(0, 0x8000, 32, 5, AVAIL | TABLE | WRITE)
    pair.echo()
    assert pair.memory.read(0x2000, 2) == b"ab"
    assert pair.driver.descriptor(0).id == 5


# -- event suppression -----------------------------------------------------------------------------


def test_device_event_is_enabled_without_event_idx(
    memory: GuestMemory, make_pair: MakePair
) -> None:
    """Even if the driver left something else there."""
    memory.write(0x3000, b"\xff" * 4)
    PackedQueue(0, memory, QueueLayout(8, 0x1000, 0x2000, 0x3000), features=PACKED)
    assert memory.load(0x3000, EventSuppression).flags == EventFlags.ENABLE


def test_device_event_names_position_and_wrap_counter(make_pair: MakePair) -> None:
    pair = make_pair(PACKED | EVENT_IDX, size=5)
    seen = []
    for _ in range(4):
        pair.driver.add([b"a", b"b"])
        pair.echo()
        pair.driver.collect()
        event = pair.driver.device_event()
        assert event.flags == EventFlags.DESCRIPTOR
        seen.append((event.position & 0x7FFF, event.position >> 15))
    assert seen == [(2, 1), (4, 1), (1, 0), (3, 0)]


@pytest.mark.parametrize(
    ("flags", "features", "wanted"),
    [
        (EventFlags.ENABLE, 0, True),
        (EventFlags.DISABLE, 0, False),
        (EventFlags.DESCRIPTOR, 0, True),  # was not negotiated: rather one interrupt too many
        (3, EVENT_IDX, True),
        (EventFlags.ENABLE, EVENT_IDX, True),
        (EventFlags.DISABLE, EVENT_IDX, False),
        (0xFFFC, 0, True),  # reserved bits
        (0xFFFD, 0, False),
    ],
)
def test_flags_of_the_driver_event(
    make_pair: MakePair, flags: int, features: int, wanted: bool
) -> None:
    pair = make_pair(PACKED | features)
    pair.driver.set_driver_event(0x7FFF, flags)
    pair.driver.add([b"a"])
    assert pair.echo() is wanted


def test_interrupt_when_the_named_descriptor_is_used(make_pair: MakePair) -> None:
    """One after the other, size 6: descriptor 3 of the second lap is the tenth."""
    pair = make_pair(PACKED | EVENT_IDX, size=6)
    decisions = []
    for n in range(14):
        pair.driver.set_driver_event(3, EventFlags.DESCRIPTOR)  # wrap counter 0: second lap
        pair.driver.add([b"a"])
        decisions.append(pair.echo())
        pair.driver._next_used()
        assert n == len(decisions) - 1
    assert [n for n, decided in enumerate(decisions) if decided] == [0, 9]


def test_interrupt_when_a_batch_passes_the_named_descriptor(make_pair: MakePair) -> None:
    pair = make_pair(PACKED | EVENT_IDX, size=6)
    pair.driver.add([b"a"])
    assert pair.echo()  # the first decision is always yes
    pair.driver.collect()
    for position, wanted in ((5 | 1 << 15, True), (2, True), (5, False), (0, False)):
        pair.driver.set_driver_event(position, EventFlags.DESCRIPTOR)
        used = [pair.driver.add([b"x"]) for _ in range(6)]
        assert pair.echo() is wanted, hex(position)
        for _ in used:
            pair.driver._next_used()


# -- hostile drivers (reference C.7) ---------------------------------------------------------------


def test_chain_that_runs_into_what_is_not_available(pair: Any) -> None:
    pair.driver.set_descriptor(0, 0x1000, 4, 0, AVAIL | NEXT)
    with pytest.raises(DeviceBroken, match="not available"):
        pair.queue.pop()


def test_chain_around_the_whole_ring_that_never_ends(pair: Any) -> None:
    for n in range(8):
        pair.driver.set_descriptor(n, 0x1000, 4, 0, AVAIL | NEXT)
    with pytest.raises(DeviceBroken, match="8 free descriptors"):
        pair.queue.pop()


def test_more_descriptors_than_are_free(pair: Any) -> None:
    """A driver that goes on while everything is in flight."""
    for _ in range(8):
        pair.driver.add([b"a"])
    assert len(list(pair.queue.chains())) == 8
    pair.driver.set_descriptor(0, 0x1000, 4, 0, USED)
    with pytest.raises(DeviceBroken, match="0 free descriptors"):
        pair.queue.pop()


@pytest.mark.parametrize("length", [0, 15, 17, 16 * MAX_CHAIN_LENGTH + 16, 0xFFFFFFF0])
def test_table_of_impossible_length(pair: Any, length: int) -> None:
    pair.driver.set_descriptor(0, 0x8000, length, 0, AVAIL | TABLE)
    with pytest.raises(DeviceBroken, match="indirect table size"):
        pair.queue.pop()


def test_table_in_a_list(pair: Any) -> None:
    """PKD-V-5, in either order."""
    pair.driver.set_descriptor(1, 0x8000, 16, 0, AVAIL | TABLE)
    pair.driver.set_descriptor(0, 0x1000, 4, 0, AVAIL | NEXT)
    with pytest.raises(DeviceBroken, match="not allowed"):
        pair.queue.pop()
    pair.driver.set_descriptor(0, 0x8000, 16, 0, AVAIL | TABLE | NEXT)
    with pytest.raises(DeviceBroken, match="not allowed"):
        pair.queue.pop()


def test_table_that_was_not_negotiated(make_pair: MakePair) -> None:
    pair = make_pair(PACKED)
    pair.driver.set_descriptor(0, 0x8000, 16, 0, AVAIL | TABLE)
    with pytest.raises(DeviceBroken, match="not allowed"):
        pair.queue.pop()


def test_table_outside_ram(pair: Any) -> None:
    pair.driver.set_descriptor(0, RAM - 8, 16, 0, AVAIL | TABLE)
    with pytest.raises(DeviceBroken, match="not in guest RAM"):
        pair.queue.pop()


def test_readable_after_writable(pair: Any) -> None:
    pair.driver.set_descriptor(1, 0x2000, 4, 0, AVAIL)
    pair.driver.set_descriptor(0, 0x1000, 4, 0, AVAIL | NEXT | WRITE)
    with pytest.raises(DeviceBroken, match="after a writable"):
        pair.queue.pop()


@pytest.mark.parametrize(
    ("gpa", "length"), [(RAM, 1), (RAM - 1, 2), (0xFEE00000, 4), ((1 << 64) - 4, 8), (0, RAM + 1)]
)
def test_buffer_that_is_not_ram(pair: Any, gpa: int, length: int) -> None:
    pair.driver.set_descriptor(0, gpa, length, 0, AVAIL | WRITE)
    with pytest.raises(DeviceBroken, match="not in guest RAM"):
        pair.queue.pop()


def test_chain_of_more_than_4_gib(pair: Any, memory: GuestMemory) -> None:
    memory.add(4 * GIB, Region(3 * GIB), name="big")
    pair.driver.set_descriptor(1, 4 * GIB, 3 * GIB, 0, AVAIL)
    pair.driver.set_descriptor(0, 4 * GIB, 3 * GIB, 0, AVAIL | NEXT)
    with pytest.raises(DeviceBroken, match="longer than 4 GiB"):
        pair.queue.pop()


@pytest.mark.parametrize(
    "layout",
    [
        QueueLayout(8, 0x1008, 0x2000, 0x3000),
        QueueLayout(8, 0x1000, 0x2002, 0x3000),
        QueueLayout(8, 0x1000, 0x2000, 0x3002),
        QueueLayout(8, RAM - 16, 0x2000, 0x3000),
        QueueLayout(8, 0x1000, RAM, 0x3000),
        QueueLayout(8, 0x1000, 0x2000, RAM),
        QueueLayout(8, 1 << 63, 0x2000, 0x3000),
        QueueLayout(0, 0x1000, 0x2000, 0x3000),
        QueueLayout(32769, 0x10000, 0x2000, 0x3000),
    ],
)
def test_impossible_layouts_are_refused(memory: GuestMemory, layout: QueueLayout) -> None:
    with pytest.raises(DeviceBroken):
        PackedQueue(0, memory, layout, features=PACKED)
