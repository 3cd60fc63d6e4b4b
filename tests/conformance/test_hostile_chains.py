"""The hostile catalogue (reference C.7), chains: in both ring formats, where a row has a sense.

What must hold whatever happens is Ordeal.check's; here is what is done, and in which of the three
states it ends.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from minivmm.spec.virtio import DescriptorFlags, Feature
from minivmm.testing.mem_ordeal import REGION, MemOrdeal
from minivmm.testing.ordeal import Outcome
from minivmm.testing.packed_ring import PackedDriver
from minivmm.testing.raw_ring import Raw
from minivmm.testing.ring import SplitDriver
from minivmm.units import MIB

ANSWERED, BROKEN = Outcome.ANSWERED, Outcome.BROKEN
NEXT, WRITE, TABLE = (int(flag) for flag in DescriptorFlags)
INDIRECT = Feature.INDIRECT_DESC.mask
RAM_END = 16 * MIB
SIZE = 128

MakeOrdeal = Callable[..., MemOrdeal]


def test_the_same_without_any_misdeed(ordeal: MemOrdeal) -> None:
    reply = ordeal.room()
    ordeal.raw.offer(ordeal.question(), reply)
    ordeal.expect_answer(reply)


# -- where chains lead -----------------------------------------------------------------------------


@pytest.mark.parametrize("head", [SIZE, SIZE + 1, 0x7FFF, 0xFFFF])
def test_head_outside_the_table(split: MemOrdeal, head: int) -> None:
    ring = split.driver.queues[0]
    assert isinstance(ring, SplitDriver)
    ring.offer(head)
    split.check(BROKEN, f"out of the table at {head}")


@pytest.mark.parametrize("identifier", [SIZE, 0x7FFF, 0xFFFF])
def test_buffer_ids_are_the_drivers_business(packed_one: MemOrdeal, identifier: int) -> None:
    packed_one.raw.offer(packed_one.question(), packed_one.room(), identifier=identifier)
    assert packed_one.check(ANSWERED) == [(identifier, 10)]


@pytest.mark.parametrize("following", [SIZE, 0x7FFF, 0xFFFF])
def test_next_outside_the_table(split: MemOrdeal, following: int) -> None:
    asked = split.question()
    split.raw.offer(Raw(asked.gpa, asked.length, 0, following), split.room())
    split.check(BROKEN, f"out of the table at {following}")


def test_next_off_the_end_of_the_ring(packed_one: MemOrdeal) -> None:
    """Behind the last slot comes the first one of the next lap: not available, so not a chain."""
    ring = packed_one.driver.queues[0]
    assert isinstance(ring, PackedDriver)
    for _ in range(SIZE // 2 - 1):
        packed_one.driver.request(0, bytes(24), 10)
    assert ring.next_avail.at == SIZE - 2
    one = packed_one.question()
    lap = int(ring.next_avail.available())
    ring.set_descriptor(SIZE - 1, one.gpa, 24, 0, NEXT | lap)
    ring.set_descriptor(SIZE - 2, one.gpa, 24, 0, NEXT | lap)
    packed_one.check(BROKEN, "runs into descriptor 0")


@pytest.mark.parametrize("length", [1, 2, SIZE])
def test_loop(split: MemOrdeal, length: int) -> None:
    asked = split.question()
    links = [Raw(asked.gpa, 1, NEXT, (n + 1) % length) for n in range(length)]
    split.raw.offer(*links)
    split.check(BROKEN, "in a loop")


def test_list_around_the_whole_ring(packed_one: MemOrdeal) -> None:
    """What a loop is in a packed ring."""
    asked = packed_one.question()
    packed_one.raw.offer(*[Raw(asked.gpa, 1, NEXT)] * SIZE)
    packed_one.check(BROKEN, "longer than the 128 free")


def test_loop_inside_a_table(split: MemOrdeal) -> None:
    asked = split.question()
    split.offer_table(Raw(asked.gpa, 1, NEXT, 1), Raw(asked.gpa, 1, NEXT, 0))
    split.check(BROKEN, "in a loop")


@pytest.mark.parametrize("following", [2, 128, 0xFFFF])
def test_next_outside_a_table(split: MemOrdeal, following: int) -> None:
    asked = split.question()
    split.offer_table(Raw(asked.gpa, 24, NEXT, following), split.room())
    split.check(BROKEN, f"out of the table at {following}")


@pytest.mark.rule("PKD-D-7")
def test_next_inside_a_packed_table_leads_nowhere(packed_one: MemOrdeal) -> None:
    asked, reply = packed_one.question(), packed_one.room()
    packed_one.offer_table(Raw(asked.gpa, 24, NEXT), Raw(reply.gpa, 10, WRITE | NEXT))
    packed_one.expect_answer(reply)


def test_a_chain_longer_than_any_needs_to_be(make_ordeal: MakeOrdeal) -> None:
    ordeal = make_ordeal(size=4096)
    asked = ordeal.question()
    ordeal.raw.offer(*[Raw(asked.gpa, 1)] * 1025)
    ordeal.check(BROKEN, "too long")


# -- indirect tables -------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 15, 17, 31, 16 * 1025, 16 * 65536, 0xFFFFFFF0])
def test_table_of_a_wrong_length(ordeal: MemOrdeal, length: int) -> None:
    ordeal.raw.offer(Raw(0x8000, length, TABLE))
    ordeal.check(BROKEN, f"indirect table size {length}$")


def test_table_as_long_as_it_may_be(ordeal: MemOrdeal) -> None:
    reply = ordeal.room()
    ordeal.offer_table(ordeal.question(), *[Raw(0, 0)] * 1022, reply)
    ordeal.expect_answer(reply)


def test_nested_table(split: MemOrdeal) -> None:
    inner = split.raw.table(split.question(), split.room())
    split.offer_table(Raw(split.put(inner), len(inner), TABLE))
    split.check(BROKEN, "indirect is not allowed")


def test_table_that_names_itself(split: MemOrdeal) -> None:
    at = split.put(bytes(16))
    split.bench.memory.write(at, split.raw.table(Raw(at, 16, TABLE)))
    split.raw.offer(Raw(at, 16, TABLE))
    split.check(BROKEN, "indirect is not allowed")


@pytest.mark.rule("PKD-D-7")
def test_indirect_inside_a_packed_table_means_nothing(packed_one: MemOrdeal) -> None:
    asked, reply = packed_one.question(), packed_one.room()
    packed_one.offer_table(Raw(asked.gpa, 24, TABLE), Raw(reply.gpa, 10, WRITE | TABLE))
    packed_one.expect_answer(reply)


def test_table_and_next(ordeal: MemOrdeal) -> None:
    table = ordeal.raw.table(ordeal.question(), ordeal.room())
    ordeal.raw.offer(Raw(ordeal.put(table), len(table), TABLE), ordeal.room())
    ordeal.check(BROKEN, "indirect is not allowed")


def test_table_at_the_end_of_a_list(ordeal: MemOrdeal) -> None:
    """Split rings allow it (SPL-D-4), packed ones do not (PKD-V-5)."""
    reply = ordeal.room()
    table = ordeal.raw.table(reply)
    ordeal.raw.grant(reply)
    ordeal.raw.offer(ordeal.question(), Raw(ordeal.put(table), len(table), TABLE))
    if ordeal.packed:
        ordeal.check(BROKEN, "indirect is not allowed")
    else:
        ordeal.expect_answer(reply)


def test_table_that_was_not_negotiated(make_ordeal: MakeOrdeal) -> None:
    ordeal = make_ordeal(without=INDIRECT)
    ordeal.offer_table(ordeal.question(), ordeal.room())
    ordeal.check(BROKEN, "indirect is not allowed")


@pytest.mark.parametrize("gpa", [RAM_END - 16, RAM_END, REGION, 0xFEE00000, (1 << 64) - 16])
def test_table_that_is_not_in_memory(ordeal: MemOrdeal, gpa: int) -> None:
    ordeal.raw.offer(Raw(gpa, 32, TABLE))
    ordeal.check(BROKEN, "not in guest RAM|unplugged")


def test_table_that_is_the_ring_itself(ordeal: MemOrdeal) -> None:
    """The driver may: it reads as a nested table, and in a packed ring as a buffer of one entry."""
    ring = ordeal.driver.queues[0].layout.descriptors
    ordeal.raw.offer(Raw(ring, 16, TABLE))
    ordeal.check(BROKEN, "needs 24 and 10" if ordeal.packed else "not allowed")


def test_unaligned_table(ordeal: MemOrdeal) -> None:
    """No alignment is asked of tables."""
    reply = ordeal.room()
    table = ordeal.raw.table(ordeal.question(), reply)
    ordeal.raw.grant(reply)
    ordeal.raw.offer(Raw(ordeal.put(b"\0" * 7 + table) + 7, len(table), TABLE))
    ordeal.expect_answer(reply)
