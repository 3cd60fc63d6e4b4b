"""The split ring, device side, against the driver side of minivmm.testing (reference C)."""

from collections.abc import Callable
from typing import Any

import pytest

from minivmm.errors import DeviceBroken
from minivmm.memory.guest import GuestMemory
from minivmm.memory.region import Region
from minivmm.spec.virtio import DescriptorFlags, Feature
from minivmm.units import GIB, MIB
from minivmm.virtio.queue.queue import QueueLayout
from minivmm.virtio.queue.ring import MAX_CHAIN_LENGTH
from minivmm.virtio.queue.split import SplitQueue

INDIRECT = Feature.INDIRECT_DESC.mask
EVENT_IDX = Feature.EVENT_IDX.mask
NEXT, WRITE = DescriptorFlags.NEXT, DescriptorFlags.WRITE
RAM = 4 * MIB

MakePair = Callable[..., Any]


@pytest.fixture
def pair(make_pair: MakePair) -> Any:
    return make_pair(INDIRECT)


@pytest.mark.rule("SPL-D-4")
@pytest.mark.parametrize("direct", [0, 1, 2, 3])
def test_indirect_with_any_number_of_direct_descriptors_before_it(pair: Any, direct: int) -> None:
    pair.driver.add([b"ab", b"cd"], [3, 1], direct=direct)
    pair.echo()
    assert pair.driver.collect()[0].data == b"abcd"


@pytest.mark.rule("SPL-D-3")
def test_write_flag_of_an_indirect_descriptor_is_ignored(pair: Any) -> None:
    head = pair.driver.add([b"ab"], [2], direct=0)
    at = pair.driver.layout.descriptors + 16 * head + 12
    pair.memory.write(at, int(DescriptorFlags.INDIRECT | WRITE).to_bytes(2, "little"))
    pair.echo()
    assert pair.driver.collect()[0].data == b"ab"


@pytest.mark.rule("SPL-D-7")
def test_used_index_moves_only_at_publish(pair: Any) -> None:
    pair.driver.add([b"a"], [1])
    pair.queue.complete(pair.queue.pop(), 0)
    assert pair.driver.used_idx == 0
    pair.queue.publish()
    assert pair.driver.used_idx == 1


def test_indices_wrap_at_65536(make_pair: MakePair) -> None:
    pair = make_pair(0, size=128)
    for _ in range(65536 // 128):
        for _ in range(128):
            pair.driver.offer(0)
        for chain in pair.queue.chains():
            pair.queue.complete(chain)
        pair.queue.publish()
    assert pair.driver.used_idx == 0
    pair.driver.offer(0)
    assert pair.echo()
    assert pair.driver.used_idx == 1


# -- interrupts and doorbells ----------------------------------------------------------------------


@pytest.mark.rule("SPL-D-8")
def test_without_event_idx_doorbells_are_never_suppressed(pair: Any) -> None:
    pair.driver.add([b"a"])
    pair.echo()
    assert pair.driver.used_flags == 0


@pytest.mark.rule("SPL-D-6")
def test_event_idx_ignores_the_no_interrupt_flag(make_pair: MakePair) -> None:
    pair = make_pair(EVENT_IDX)
    pair.memory.write(pair.driver.layout.driver, b"\x01\x00")
    pair.driver.add([b"a"])
    assert pair.echo()


@pytest.mark.rule("SPL-D-6")
def test_event_idx_interrupts_when_used_event_is_passed(make_pair: MakePair) -> None:
    pair = make_pair(EVENT_IDX)
    decisions = []
    for used_event in (0, 5, 5, 5, 5, 5):
        pair.driver.set_used_event(used_event)
        head = pair.driver.add([b"a"])
        decisions.append(pair.echo())
        assert pair.driver.used_element(len(decisions) - 1).id == head
    assert decisions == [True, False, False, False, False, True]


def test_event_idx_first_decision_is_always_yes(make_pair: MakePair) -> None:
    pair = make_pair(EVENT_IDX)
    pair.driver.set_used_event(1000)
    pair.driver.add([b"a"])
    assert pair.echo()


# -- hostile drivers (reference C.7) ---------------------------------------------------------------


def test_avail_index_too_far_ahead(pair: Any) -> None:
    pair.driver.set_avail_idx(9)
    with pytest.raises(DeviceBroken, match=r"avail\.idx 9"):
        pair.queue.pop()


def test_avail_index_that_goes_back(pair: Any) -> None:
    pair.driver.add([b"a"])
    pair.echo()
    pair.driver.set_avail_idx(0)
    with pytest.raises(DeviceBroken, match="more than 8"):
        pair.queue.pop()


def test_more_chains_in_flight_than_descriptors(pair: Any) -> None:
    for _ in range(8):
        pair.driver.add([b"a"])
    held = list(pair.queue.chains())
    pair.driver.offer(0)
    with pytest.raises(DeviceBroken, match="8 in flight"):
        pair.queue.pop()
    assert len(held) == 8


def test_head_outside_the_table(pair: Any) -> None:
    pair.driver.offer(8)
    with pytest.raises(DeviceBroken, match="out of the table"):
        pair.queue.pop()


def test_next_outside_the_table(pair: Any) -> None:
    pair.driver.set_descriptor(0, 0x1000, 4, NEXT, 8)
    pair.driver.offer(0)
    with pytest.raises(DeviceBroken, match="out of the table"):
        pair.queue.pop()


@pytest.mark.parametrize("length", [1, 2, 8])
def test_loops(pair: Any, length: int) -> None:
    for index in range(length):
        pair.driver.set_descriptor(index, 0x1000, 4, NEXT, (index + 1) % length)
    pair.driver.offer(0)
    with pytest.raises(DeviceBroken, match="loop"):
        pair.queue.pop()


def offer_indirect(pair: Any, table: bytes, length: int | None = None, flags: int = 4) -> None:
    pair.memory.write(0x8000, table)
    pair.driver.set_descriptor(0, 0x8000, len(table) if length is None else length, flags, 1)
    pair.driver.offer(0)


@pytest.mark.parametrize("length", [0, 15, 17, 16 * MAX_CHAIN_LENGTH + 16, 0xFFFFFFF0])
def test_indirect_table_of_impossible_length(pair: Any, length: int) -> None:
    offer_indirect(pair, bytes(16), length)
    with pytest.raises(DeviceBroken, match="indirect table size"):
        pair.queue.pop()


def test_indirect_table_outside_ram(pair: Any) -> None:
    pair.driver.set_descriptor(0, RAM - 8, 16, DescriptorFlags.INDIRECT, 0)
    pair.driver.offer(0)
    with pytest.raises(DeviceBroken, match="not in guest RAM"):
        pair.queue.pop()


def test_nested_indirect_table(pair: Any) -> None:
    offer_indirect(pair, (0x8000).to_bytes(8, "little") + b"\x10\0\0\0\x04\0\0\0")
    with pytest.raises(DeviceBroken, match="not allowed"):
        pair.queue.pop()


def test_indirect_with_next(pair: Any) -> None:
    offer_indirect(pair, bytes(16), flags=4 | 1)
    with pytest.raises(DeviceBroken, match="not allowed"):
        pair.queue.pop()


def test_indirect_that_was_not_negotiated(make_pair: MakePair) -> None:
    pair = make_pair(0)
    offer_indirect(pair, bytes(16))
    with pytest.raises(DeviceBroken, match="not allowed"):
        pair.queue.pop()


def test_loop_inside_an_indirect_table(pair: Any) -> None:
    offer_indirect(pair, (0x1000).to_bytes(8, "little") + b"\x04\0\0\0\x01\0\0\0")
    with pytest.raises(DeviceBroken, match="loop"):
        pair.queue.pop()


def test_readable_after_writable(pair: Any) -> None:
    pair.driver.set_descriptor(0, 0x1000, 4, NEXT | WRITE, 1)
    pair.driver.set_descriptor(1, 0x2000, 4, 0, 0)
    pair.driver.offer(0)
    with pytest.raises(DeviceBroken, match="after a writable"):
        pair.queue.pop()


@pytest.mark.parametrize(
    ("gpa", "length"),
    [(RAM, 1), (RAM - 1, 2), (0xFEE00000, 4), ((1 << 64) - 4, 4), ((1 << 64) - 4, 8), (0, RAM + 1)],
)
def test_buffer_that_is_not_ram(pair: Any, gpa: int, length: int) -> None:
    pair.driver.set_descriptor(0, gpa, length, WRITE, 0)
    pair.driver.offer(0)
    with pytest.raises(DeviceBroken, match="not in guest RAM"):
        pair.queue.pop()


def test_chain_of_more_than_4_gib(pair: Any, memory: GuestMemory) -> None:
    memory.add(4 * GIB, Region(3 * GIB), name="big")
    pair.driver.set_descriptor(0, 4 * GIB, 3 * GIB, NEXT, 1)
    pair.driver.set_descriptor(1, 4 * GIB, 3 * GIB, 0, 0)
    pair.driver.offer(0)
    with pytest.raises(DeviceBroken, match="longer than 4 GiB"):
        pair.queue.pop()


def test_request_is_copied_when_read(pair: Any) -> None:
    pair.driver.set_descriptor(0, 0x1000, 4, 0, 0)
    pair.memory.write(0x1000, b"good")
    pair.driver.offer(0)
    chain = pair.queue.pop()
    data = chain.read()
    pair.memory.write(0x1000, b"evil")
    assert data == b"good"


# -- placement -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout",
    [
        QueueLayout(8, 0x1008, 0x2000, 0x3000),
        QueueLayout(8, 0x1000, 0x2001, 0x3000),
        QueueLayout(8, 0x1000, 0x2000, 0x3002),
        QueueLayout(8, RAM - 16, 0x2000, 0x3000),
        QueueLayout(8, 0x1000, RAM - 2, 0x3000),
        QueueLayout(8, 0x1000, 0x2000, RAM - 64),
        QueueLayout(8, 1 << 63, 0x2000, 0x3000),
        QueueLayout(0, 0x1000, 0x2000, 0x3000),
        QueueLayout(6, 0x1000, 0x2000, 0x3000),
        QueueLayout(65536, 0x1000, 0x2000, 0x3000),
    ],
)
def test_impossible_layouts_are_refused(memory: GuestMemory, layout: QueueLayout) -> None:
    with pytest.raises(DeviceBroken):
        SplitQueue(0, memory, layout, features=0)


def test_buffer_across_two_adjacent_regions(pair: Any, memory: GuestMemory) -> None:
    memory.add(RAM, Region(MIB), name="more")
    memory.write(RAM - 2, b"abcd")
    pair.driver.set_descriptor(0, RAM - 2, 4, NEXT, 1)
    pair.driver.set_descriptor(1, RAM - 3, 4, WRITE, 0)
    pair.driver.offer(0)
    chain = pair.queue.pop()
    assert chain.read() == b"abcd"
    chain.write(b"WXYZ")
    assert memory.read(RAM - 3, 4) == b"WXYZ"
