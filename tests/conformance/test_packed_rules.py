"""Packed rings (reference C.4, PKD-D), on the memory device and on a queue itself.

Rules that the queue's own tests prove have their marks there.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from minivmm.memory.guest import GuestMemory
from minivmm.memory.region import Region
from minivmm.spec.virtio import DescriptorFlags, Feature, PackedDescriptor, PackedFlags
from minivmm.spec.virtio_mem import MemRequest, MemResponse, RequestType
from minivmm.testing.buffers import GuestAllocator
from minivmm.testing.mem_ordeal import REGION, MemOrdeal
from minivmm.testing.ordeal import Outcome
from minivmm.testing.packed_ring import PackedDriver
from minivmm.testing.raw_ring import Raw
from minivmm.units import MIB
from minivmm.virtio.queue.packed import PackedQueue
from minivmm.virtio.queue.queue import Chain

NEXT, WRITE, TABLE = (int(flag) for flag in DescriptorFlags)
AVAIL, USED = PackedFlags.AVAIL, PackedFlags.USED
BOTH = AVAIL | USED
PLUG = MemRequest(type=RequestType.PLUG, addr=REGION, nb_blocks=3).build()
SIZE = 8


class Pair:
    """A driver and a device of one packed ring."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.driver = PackedDriver(memory, GuestAllocator(memory, 0x10000, MIB), SIZE)
        features = Feature.RING_PACKED.mask | Feature.INDIRECT_DESC.mask
        self.queue = PackedQueue(0, memory, self.driver.layout, features=features)

    def take(self, count: int) -> list[Chain]:
        """So many chains, which must be there."""
        chains = [self.queue.pop() for _ in range(count)]
        assert all(chains)
        return [chain for chain in chains if chain]

    def hand_back(self, *chains: Chain) -> None:
        """Used with nothing written, one by one."""
        for chain in chains:
            self.queue.complete(chain)
            self.queue.publish()

    def ring(self) -> list[PackedDescriptor]:
        """All descriptors as they are."""
        return [self.driver.descriptor(slot) for slot in range(SIZE)]


@pytest.fixture
def pair() -> Iterator[Pair]:
    memory = GuestMemory()
    memory.add(0, Region(MIB), name="ram")
    yield Pair(memory)
    memory.close()


@pytest.mark.rule("PKD-D-1")
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
def test_begun_in_ring_order_and_used_in_order_of_completion(
    pair: Pair, order: tuple[int, ...]
) -> None:
    """Over many laps, with lists of other lengths than the ring's."""
    for lap in range(20):
        heads = [pair.driver.add([bytes([lap, n])], [1] * (n % 2)) for n in range(3)]
        chains = pair.take(3)
        assert [chain.read() for chain in chains] == [bytes([lap, n]) for n in range(3)]
        pair.hand_back(*(chains[n] for n in order))
        assert [used.head for used in pair.driver.collect()] == [heads[n] for n in order]


@pytest.mark.rule("PKD-D-2")
def test_only_answers_ring_and_device_event_are_written(packed_one: MemOrdeal) -> None:
    """Ordeal.check compares all of memory: requests, tables and the driver's event stay."""
    replies = [packed_one.room() for _ in range(3)]
    for reply in replies:
        packed_one.raw.offer(packed_one.question(), reply)
    table = packed_one.raw.table(packed_one.question(), replies[0])
    packed_one.raw.offer(Raw(packed_one.put(table), len(table), TABLE))
    packed_one.raw.granted = [(reply.gpa, MemResponse.SIZE) for reply in replies]
    assert len(packed_one.check(Outcome.ANSWERED)) == 4


@pytest.mark.rule("PKD-D-3")
@pytest.mark.parametrize("lap", range(4))
def test_descriptors_are_left_alone_until_they_are_available(pair: Pair, lap: int) -> None:
    """In each lap only one of the four combinations of AVAIL and USED is an offer."""
    for _ in range(lap * SIZE):
        pair.driver.add([b"x"])
        pair.hand_back(*pair.take(1))
        pair.driver.collect()
    offer = AVAIL if lap % 2 == 0 else USED
    for flags in (PackedFlags(0), AVAIL, USED, BOTH):
        if flags != offer:
            pair.driver.set_descriptor(0, 1 << 63, 1, 0, flags)
            before = pair.ring()
            assert pair.queue.pop() is None
            assert pair.ring() == before
    pair.driver.set_descriptor(0, 0x8000, 1, 0, offer)
    assert pair.queue.pop() is not None


@pytest.mark.rule("PKD-D-4")
def test_used_descriptors_are_not_touched_again(pair: Pair) -> None:
    """Whatever is used afterwards, until the driver makes the slot available again."""
    for _ in range(4):
        pair.driver.add([b"x", b"y"])
    chains = pair.take(4)
    for done, chain in enumerate(chains, 1):
        before = pair.ring()
        pair.hand_back(chain)
        after = pair.ring()
        changed = [slot for slot in range(SIZE) if before[slot] != after[slot]]
        assert changed == [2 * (done - 1)]
        assert after[changed[0]].flags & BOTH == BOTH


@pytest.mark.rule("PKD-D-4", "PKD-D-6")
@pytest.mark.parametrize("lengths", [(1, 1, 1), (3, 1, 2), (2, 2, 2), (5, 1, 1), (1, 6, 1)])
def test_one_used_descriptor_for_each_list(pair: Pair, lengths: tuple[int, ...]) -> None:
    """It lies where the list began, if lists come back in order; the rest of the list stays."""
    at, lap = 0, BOTH
    for _ in range(10):
        starts = []
        for length in lengths:
            starts.append((at, lap))
            pair.driver.add([b"x"] * length)
            at += length
            if at >= SIZE:
                at, lap = at - SIZE, lap ^ BOTH
        before = pair.ring()
        pair.hand_back(*pair.take(len(lengths)))
        after = pair.ring()
        assert [after[slot].flags for slot, _ in starts] == [int(flags) for _, flags in starts]
        changed = {slot for slot in range(SIZE) if before[slot] != after[slot]}
        assert changed == {slot for slot, _ in starts}
        assert len(pair.driver.collect()) == len(lengths)


@pytest.mark.rule("PKD-D-5")
def test_lists_are_used_in_the_order_in_which_they_became_available(packed_one: MemOrdeal) -> None:
    """The memory device serves one after the other: a list of 25, of 2, of 4, and a table."""
    ring = packed_one.driver.queues[0]
    asked = [
        ring.add([PLUG[n : n + 1] for n in range(24)], [10]),
        ring.add([PLUG], [10]),
        ring.add([PLUG[:8], PLUG[8:]], [8, 2]),
        ring.add([PLUG], [10], direct=0),
    ]
    packed_one.driver.kick(0)
    used = ring.collect()
    assert [one.head for one in used] == asked
    assert [one.data[0] for one in used] == [0, 3, 3, 3]  # ACK, then ERROR: plugged already


@pytest.mark.rule("PKD-D-7")
@pytest.mark.parametrize("noise", [WRITE, 0x08, 0x7F70])
def test_flags_beside_a_table_mean_nothing(packed_one: MemOrdeal, noise: int) -> None:
    reply = packed_one.room()
    packed_one.offer_table(packed_one.question(), reply, flags=TABLE | noise)
    packed_one.raw.granted = [(reply.gpa, reply.length)]
    packed_one.expect_answer(reply)


@pytest.mark.rule("PKD-D-7")
@pytest.mark.parametrize("noise", [NEXT, TABLE, int(AVAIL), int(USED), 0xFFFF & ~WRITE])
def test_flags_inside_a_table_mean_nothing_but_write(packed_one: MemOrdeal, noise: int) -> None:
    asked, reply = packed_one.question(), packed_one.room()
    packed_one.offer_table(
        Raw(asked.gpa, asked.length, noise), Raw(reply.gpa, reply.length, WRITE | noise)
    )
    packed_one.expect_answer(reply)


@pytest.mark.parametrize("cut", range(1, 34))
def test_request_and_answer_cut_anywhere(packed_one: MemOrdeal, cut: int) -> None:
    """24 bytes of request and 10 of answer: at each place, empty descriptors included."""
    there = max(0, cut - 24)
    used = packed_one.driver.submit(0, PLUG[:cut], PLUG[cut:], writable=(there, 10 - there))
    assert [one.data for one in used] == [MemResponse().build()]
