"""The hostile catalogue (reference C.7), buffers: where they lie, in what order, and how much."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from minivmm.memory.guest import GuestMemory
from minivmm.memory.region import Region
from minivmm.spec import platform
from minivmm.spec.virtio import DescriptorFlags
from minivmm.spec.virtio_mem import MemResponse, RequestType, ResponseType
from minivmm.testing.mem_ordeal import BLOCK, REGION, UNPLUGGED, MemOrdeal
from minivmm.testing.ordeal import Outcome
from minivmm.testing.raw_ring import Raw
from minivmm.units import GIB, MIB

ANSWERED, BROKEN = Outcome.ANSWERED, Outcome.BROKEN
WRITE = int(DescriptorFlags.WRITE)
RAM_END = 16 * MIB

MakeOrdeal = Callable[..., MemOrdeal]


# -- empty ones ------------------------------------------------------------------------------------


def test_empty_buffers_are_ignored_wherever_they_are(ordeal: MemOrdeal) -> None:
    """Addresses that are none, and orders that would be wrong, included."""
    reply = ordeal.room()
    nowhere, anywhere = Raw(1 << 63, 0, WRITE), Raw(0xFEE00000, 0)
    ordeal.raw.offer(nowhere, anywhere, ordeal.question(), nowhere, anywhere, reply, anywhere)
    ordeal.expect_answer(reply)


@pytest.mark.parametrize("count", [1, 128])
def test_nothing_but_empty_buffers(ordeal: MemOrdeal, count: int) -> None:
    ordeal.raw.offer(*[Raw(0, 0)] * count)
    ordeal.check(BROKEN, "0 readable and 0 writable")


@pytest.mark.parametrize(("readable", "writable"), [(23, 10), (24, 9), (0, 10), (24, 0), (1, 1)])
def test_buffers_too_short(ordeal: MemOrdeal, readable: int, writable: int) -> None:
    """A.8-1: nothing can be answered."""
    asked, reply = ordeal.question(), ordeal.room()
    ordeal.raw.offer(Raw(asked.gpa, readable), Raw(reply.gpa, writable, WRITE))
    ordeal.check(BROKEN, f"{readable} readable and {writable} writable")


# -- order -----------------------------------------------------------------------------------------


def test_answer_before_the_request(ordeal: MemOrdeal) -> None:
    ordeal.raw.offer(ordeal.room(), ordeal.question())
    ordeal.check(BROKEN, "after a writable one")


def test_answer_before_the_request_in_a_table(ordeal: MemOrdeal) -> None:
    ordeal.offer_table(ordeal.room(), ordeal.question())
    ordeal.check(BROKEN, "after a writable one")


def test_request_around_the_answer(ordeal: MemOrdeal) -> None:
    asked = ordeal.question()
    ordeal.raw.offer(Raw(asked.gpa, 20), ordeal.room(), Raw(asked.gpa + 20, 4))
    ordeal.check(BROKEN, "after a writable one")


# -- place -----------------------------------------------------------------------------------------

NO_RAM = [
    pytest.param(RAM_END, 24, id="behind-ram"),
    pytest.param(RAM_END - 23, 24, id="over-the-end-of-ram"),
    pytest.param(0, RAM_END + 1, id="more-than-ram"),
    pytest.param(0xFEE00000, 24, id="apic"),
    pytest.param(platform.ECAM_BASE, 24, id="ecam"),
    pytest.param(platform.MMIO32_BASE, 24, id="pci-window"),
    pytest.param(1 << 40, 24, id="our-own-bar"),
    pytest.param((1 << 52) - 24, 24, id="end-of-physical"),
    pytest.param((1 << 64) - 24, 24, id="end-of-all"),
    pytest.param((1 << 64) - 4, 24, id="around-the-end"),
    pytest.param((1 << 64) - 1, 0xFFFFFF00, id="around-the-end-far"),
]


@pytest.mark.parametrize(("gpa", "length"), NO_RAM)
def test_request_that_is_not_in_memory(ordeal: MemOrdeal, gpa: int, length: int) -> None:
    ordeal.raw.offer(Raw(gpa, length), ordeal.room())
    ordeal.check(BROKEN, "not in guest RAM")


@pytest.mark.parametrize(("gpa", "length"), NO_RAM)
def test_answer_that_is_not_in_memory(ordeal: MemOrdeal, gpa: int, length: int) -> None:
    ordeal.raw.offer(ordeal.question(), Raw(gpa, length, WRITE))
    ordeal.check(BROKEN, "not in guest RAM")


@pytest.mark.parametrize(
    ("gpa", "length"),
    [
        pytest.param(REGION + 4 * BLOCK, 24, id="unplugged"),
        pytest.param(REGION + 4 * BLOCK - 23, 24, id="last-byte-unplugged"),
        pytest.param(REGION, 5 * BLOCK, id="with-an-unplugged-block-behind"),
        pytest.param(REGION + GIB - 24, 24, id="end-of-region"),
        pytest.param(REGION + GIB - 23, 24, id="over-the-end-of-the-region"),
        pytest.param(REGION - 1, 24, id="before-the-region"),
    ],
)
@pytest.mark.parametrize("writable", [False, True])
def test_buffer_in_memory_that_is_not_plugged(
    ordeal: MemOrdeal, gpa: int, length: int, writable: bool
) -> None:
    ordeal.plug(0, 4)
    if writable:
        ordeal.raw.offer(ordeal.question(), Raw(gpa, length, WRITE))
    else:
        ordeal.raw.offer(Raw(gpa, length), ordeal.room())
    ordeal.check(BROKEN, "unplugged memory of vmem0|not in guest RAM")


def test_answer_in_plugged_memory(ordeal: MemOrdeal) -> None:
    """Which is memory like any other."""
    ordeal.plug(0, 4)
    reply = Raw(REGION + 2 * BLOCK - 5, 10, WRITE)
    ordeal.raw.offer(ordeal.question(), reply)
    assert ordeal.check(ANSWERED) == [(0, 10)]


@pytest.mark.parametrize("kind", [RequestType.UNPLUG, RequestType.UNPLUG_ALL])
def test_answer_in_the_block_that_is_unplugged(ordeal: MemOrdeal, kind: int) -> None:
    """The block is gone when the answer comes; it is not populated for it."""
    ordeal.plug(0, 4)
    ordeal.raw.offer(ordeal.question(kind, 2), Raw(REGION + 2 * BLOCK, 10, WRITE))
    ordeal.check(BROKEN, "unplugged memory of vmem0", changes=True)


@pytest.mark.rule("SPL-D-1")
def test_answer_across_two_regions(ordeal: MemOrdeal) -> None:
    """Where one region ends and another begins is our business, not the driver's."""
    ordeal.bench.memory.add(RAM_END, Region(MIB), name="more")
    reply = Raw(RAM_END - 4, 10, WRITE)
    ordeal.raw.offer(ordeal.question(), reply)
    ordeal.expect_answer(reply)


def test_table_across_two_regions(ordeal: MemOrdeal) -> None:
    ordeal.bench.memory.add(RAM_END, Region(MIB), name="more")
    reply = ordeal.room()
    table = ordeal.raw.table(ordeal.question(), reply)
    ordeal.bench.memory.write(RAM_END - 8, table)
    ordeal.raw.grant(reply)
    ordeal.raw.offer(Raw(RAM_END - 8, len(table), int(DescriptorFlags.INDIRECT)))
    ordeal.expect_answer(reply)


# -- overlaps --------------------------------------------------------------------------------------


def test_answer_over_the_request(ordeal: MemOrdeal) -> None:
    """The request was read before."""
    asked = ordeal.question()
    reply = Raw(asked.gpa, 10, WRITE)
    ordeal.raw.offer(asked, reply)
    ordeal.expect_answer(reply)


@pytest.mark.parametrize("bytes_each", [1, 3])
def test_request_in_pieces_that_lie_backwards(ordeal: MemOrdeal, bytes_each: int) -> None:
    asked, reply = ordeal.question(RequestType.PLUG, 3), ordeal.room()
    data = ordeal.bench.memory.read(asked.gpa, 24)
    starts = [*range(0, 24, bytes_each), 24]
    pieces = [Raw(ordeal.put(data[a:b]), b - a) for a, b in reversed(list(pairwise(starts)))]
    ordeal.raw.offer(*reversed(pieces), reply)
    ordeal.expect_answer(reply, bytes(10), changes=True)


def test_request_out_of_the_ring_itself(ordeal: MemOrdeal) -> None:
    """What descriptors look like as a request is no request that there is."""
    reply = ordeal.room()
    ordeal.raw.offer(Raw(ordeal.driver.queues[0].layout.descriptors + 4, 24), reply)
    ordeal.check(ANSWERED)
    answer = MemResponse.parse(ordeal.bench.memory.read(reply.gpa, 10))
    assert answer.type == ResponseType.ERROR


@pytest.mark.parametrize("part", ["descriptors", "driver", "device"])
def test_answer_into_the_ring_itself(ordeal: MemOrdeal, part: str) -> None:
    """The driver shoots itself: two requests wait, and the first answer goes over the ring.

    Descriptor table: the first request's, which is not needed any more. Available ring: its index
    seems to go back. Used ring: the index is stored afterwards. Packed: the first slot is written
    anyway; event suppression of all zeroes means that everything is wanted.
    """
    at = getattr(ordeal.driver.queues[0].layout, part)
    ordeal.raw.offer(ordeal.question(), Raw(at, 10, WRITE))
    second = ordeal.room()
    ordeal.raw.offer(ordeal.question(), second)
    if part == "driver" and not ordeal.packed:
        ordeal.check(BROKEN, r"avail\.idx 0 after 1")
    else:
        assert len(ordeal.check(ANSWERED)) == 2
        assert ordeal.bench.memory.read(second.gpa, 10) == UNPLUGGED


def test_answers_that_make_more_requests_available(split: MemOrdeal) -> None:
    """An answer is written over avail.idx, which says one more each time: bounded, like any."""
    ring = split.driver.queues[0]
    index = ring.layout.driver + 2
    split.bench.memory.write(ring.layout.driver + 4, bytes(2 * ring.size))
    # The state in byte 8 of the answer is avail.idx: PLUGGED, UNPLUGGED and MIXED are 0, 1 and 2.
    split.raw.offer(split.question(), Raw(index - 8, 10, WRITE))
    split.check(ANSWERED)


# -- amounts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [False, True])
def test_more_than_4_gib_in_a_chain(make_ordeal: MakeOrdeal, table: bool) -> None:
    ordeal = make_ordeal(size=1024)
    chain = [*[Raw(0, RAM_END)] * 256, ordeal.room()]
    if table:
        ordeal.offer_table(*chain)
    else:
        ordeal.raw.offer(*chain)
    ordeal.check(BROKEN, "longer than 4 GiB")


def test_almost_4_gib_in_a_chain(make_ordeal: MakeOrdeal) -> None:
    """Of which 24 bytes are read and 10 are written: what Ordeal.check lets nobody exceed."""
    ordeal = make_ordeal(size=1024)
    reply = ordeal.room()
    ordeal.raw.granted.append((reply.gpa, 10))
    ordeal.bench.memory.write(0, ordeal.bench.memory.read(ordeal.question().gpa, 24))
    writable = Raw(reply.gpa, RAM_END - reply.gpa, WRITE)
    ordeal.raw.offer(*[Raw(0, RAM_END)] * 254, writable)
    ordeal.raw.granted.pop()
    ordeal.expect_answer(reply)


def test_huge_room_for_the_answer(ordeal: MemOrdeal) -> None:
    """Ten bytes of it are used."""
    reply = ordeal.room(MIB)
    ordeal.raw.offer(ordeal.question(), reply)
    ordeal.raw.granted[:] = [(reply.gpa, MemResponse.SIZE)]
    ordeal.expect_answer(reply)


def test_request_with_surplus(ordeal: MemOrdeal) -> None:
    reply = ordeal.room()
    surplus = Raw(ordeal.put(b"\xff" * MIB), MIB)
    ordeal.raw.offer(ordeal.question(), surplus, reply)
    ordeal.expect_answer(reply)


# -- memory that changes while it is looked at -----------------------------------------------------


class Meddler:
    """Guest memory whose content another CPU changes before the n-th access of the device."""

    def __init__(self, memory: GuestMemory, at: int, change: Callable[[], None]) -> None:
        self._view, self._peek, self._left, self._change = memory.view, memory.peek, at, change
        vars(memory).update(view=self.view, peek=self.peek)
        self._memory = memory
        for slot in memory.slots:
            slot.region.lends = False  # or views of rings that are kept would not be seen here

    def view(self, gpa: int, length: int) -> memoryview:
        self._count()
        return self._view(gpa, length)

    def peek(self, gpa: int, length: int) -> memoryview:
        self._count()
        return self._peek(gpa, length)

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            for name in ("view", "peek"):
                del vars(self._memory)[name]
            self._change()


@pytest.mark.parametrize("at", range(1, 20))
@pytest.mark.parametrize("filler", [b"\0", b"\xff", b"\x80", b"\x03"])
def test_everything_changes_under_the_devices_hands(
    make_ordeal: MakeOrdeal, at: int, filler: bytes
) -> None:
    """Ring, table, request: whichever is read when, it is judged as it was read, and once."""
    ordeal = make_ordeal()
    ordeal.plug(0, 1)
    asked, reply = ordeal.question(block=0), ordeal.room()
    ordeal.offer_table(asked, reply)
    ordeal.offer_table(asked, reply)
    memory, layout = ordeal.bench.memory, ordeal.driver.queues[0].layout
    places = [(layout.descriptors, 64), (layout.driver, 4), (layout.device, 4), (asked.gpa, 24)]
    ordeal.raw.granted += places

    def change() -> None:
        for gpa, length in places:
            memory.write(gpa, filler * length)

    Meddler(memory, at, change)
    ordeal.check(None)
