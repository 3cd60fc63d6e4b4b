"""The split ring, device side, against the driver side of minivmm.testing (reference C)."""

from collections.abc import Iterator

import pytest

from minivmm.errors import DeviceBroken
from minivmm.memory.guest import GuestMemory
from minivmm.memory.region import Region
from minivmm.spec.virtio import DescriptorFlags, Feature
from minivmm.testing.ring import GuestAllocator, SplitDriver
from minivmm.testing.sparse import FakeOccupancy
from minivmm.units import GIB, MIB
from minivmm.virtio.queue.queue import QueueLayout
from minivmm.virtio.queue.ring import MAX_CHAIN_LENGTH, need_event
from minivmm.virtio.queue.split import SplitQueue

INDIRECT = Feature.INDIRECT_DESC.mask
EVENT_IDX = Feature.EVENT_IDX.mask
NEXT, WRITE = DescriptorFlags.NEXT, DescriptorFlags.WRITE
RAM = 4 * MIB


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    made = GuestMemory()
    made.add(0, Region(RAM), name="ram")
    yield made
    made.close()


@pytest.fixture
def allocator(memory: GuestMemory) -> GuestAllocator:
    return GuestAllocator(memory, 0x10000, RAM)


class Pair:
    """Both sides of one ring."""

    def __init__(
        self,
        memory: GuestMemory,
        allocator: GuestAllocator,
        size: int = 8,
        features: int = INDIRECT,
    ) -> None:
        self.memory = memory
        self.allocator = allocator
        self.driver = SplitDriver(memory, allocator, size, event_idx=bool(features & EVENT_IDX))
        self.queue = SplitQueue(0, memory, self.driver.layout, features=features)

    def echo(self) -> bool:
        """Handle all chains; True if an interrupt is wanted."""
        for chain in self.queue.chains():
            data = chain.read(chain.writable)
            chain.write(data)
            self.queue.complete(chain, len(data))
        return self.queue.publish()


@pytest.fixture
def pair(memory: GuestMemory, allocator: GuestAllocator) -> Pair:
    return Pair(memory, allocator)


def test_empty_ring_has_no_chain(pair: Pair) -> None:
    assert pair.queue.pop() is None
    assert not pair.queue.publish()


def test_request_and_reply(pair: Pair) -> None:
    head = pair.driver.add([b"ping"], [4])
    assert pair.echo()
    used = pair.driver.collect()
    assert [(u.head, u.written, u.data) for u in used] == [(head, 4, b"ping")]


def test_framing_does_not_matter(memory: GuestMemory, allocator: GuestAllocator) -> None:
    pair = Pair(memory, allocator, size=64)
    message = bytes(range(24))
    pair.driver.add([message[i : i + 1] for i in range(24)], [1] * 10)
    pair.echo()
    assert pair.driver.collect()[0].data == message[:10]


@pytest.mark.parametrize("direct", [0, 1, 2, 3])
def test_indirect_with_any_number_of_direct_descriptors_before_it(pair: Pair, direct: int) -> None:
    pair.driver.add([b"ab", b"cd"], [3, 1], direct=direct)
    pair.echo()
    assert pair.driver.collect()[0].data == b"abcd"


def test_write_flag_of_an_indirect_descriptor_is_ignored(pair: Pair) -> None:
    head = pair.driver.add([b"ab"], [2], direct=0)
    at = pair.driver.layout.descriptors + 16 * head + 12
    pair.memory.write(at, int(DescriptorFlags.INDIRECT | WRITE).to_bytes(2, "little"))
    pair.echo()
    assert pair.driver.collect()[0].data == b"ab"


def test_chain_tells_its_sizes_and_reads_no_more_than_asked(pair: Pair) -> None:
    pair.driver.add([b"abc", b"defg"], [5, 6])
    chain = pair.queue.pop()
    assert chain is not None
    assert (chain.readable, chain.writable) == (7, 11)
    assert chain.read(0) == b""
    assert chain.read(5) == b"abcde"
    assert chain.read(100) == b"abcdefg"


def test_write_that_does_not_fit_is_a_programming_error(pair: Pair) -> None:
    pair.driver.add([], [4])
    chain = pair.queue.pop()
    assert chain is not None
    with pytest.raises(ValueError, match="5 bytes"):
        chain.write(b"12345")


def test_empty_buffers_are_ignored(pair: Pair) -> None:
    pair.driver.add([b"", b"xy", b""], [0, 2])
    pair.echo()
    assert pair.driver.collect()[0].data == b"xy"


def test_used_index_moves_only_at_publish(pair: Pair) -> None:
    pair.driver.add([b"a"], [1])
    chain = pair.queue.pop()
    assert chain is not None
    pair.queue.complete(chain, 0)
    assert pair.driver.used_idx == 0
    pair.queue.publish()
    assert pair.driver.used_idx == 1


def test_chains_may_be_completed_out_of_order(pair: Pair) -> None:
    heads = [pair.driver.add([bytes([n])], [1]) for n in range(3)]
    chains = list(pair.queue.chains())
    for chain in reversed(chains):
        pair.queue.complete(chain)
    pair.queue.publish()
    assert [used.head for used in pair.driver.collect()] == heads[::-1]


def test_completing_what_was_not_popped_is_a_programming_error(pair: Pair) -> None:
    pair.driver.add([b"a"])
    chain = pair.queue.pop()
    assert chain is not None
    pair.queue.complete(chain)
    with pytest.raises(ValueError, match="not in flight"):
        pair.queue.complete(chain)


@pytest.mark.parametrize("size", [1, 2, 128, 32768])
def test_every_queue_size_works(memory: GuestMemory, allocator: GuestAllocator, size: int) -> None:
    pair = Pair(memory, allocator, size=size)
    for n in range(3):
        pair.driver.add([bytes([n])], [1], direct=0)
        pair.echo()
        assert [used.data for used in pair.driver.collect()] == [bytes([n])]


def test_indices_wrap_at_65536(memory: GuestMemory, allocator: GuestAllocator) -> None:
    pair = Pair(memory, allocator, size=128)
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


def test_work_per_call_is_bounded_by_the_queue_size(pair: Pair) -> None:
    served = 0
    pair.driver.add([b"x"])
    for chain in pair.queue.chains():
        served += 1
        pair.queue.complete(chain)
        pair.queue.publish()
        pair.driver.collect()
        pair.driver.add([b"x"])  # the guest on another CPU keeps the ring filled
    assert served == 8
    assert pair.queue.interrupted


def test_exactly_a_full_ring_is_not_an_interruption(pair: Pair) -> None:
    for _ in range(8):
        pair.driver.add([b"x"])
    assert len(list(pair.queue.chains())) == 8
    assert not pair.queue.interrupted


# -- interrupts and doorbells ----------------------------------------------------------------------


def test_no_interrupt_flag_suppresses_interrupts(pair: Pair) -> None:
    pair.driver.want_interrupts(False)
    pair.driver.add([b"a"])
    assert not pair.echo()


def test_without_event_idx_doorbells_are_never_suppressed(pair: Pair) -> None:
    pair.driver.add([b"a"])
    pair.echo()
    assert pair.driver.used_flags == 0


def test_event_idx_ignores_the_no_interrupt_flag(
    memory: GuestMemory, allocator: GuestAllocator
) -> None:
    pair = Pair(memory, allocator, features=EVENT_IDX)
    memory.write(pair.driver.layout.driver, b"\x01\x00")
    pair.driver.add([b"a"])
    assert pair.echo()


def test_event_idx_interrupts_when_used_event_is_passed(
    memory: GuestMemory, allocator: GuestAllocator
) -> None:
    pair = Pair(memory, allocator, features=EVENT_IDX)
    decisions = []
    for used_event in (0, 5, 5, 5, 5, 5):
        pair.driver.set_used_event(used_event)
        head = pair.driver.add([b"a"])
        decisions.append(pair.echo())
        assert pair.driver.used_element(len(decisions) - 1).id == head
    assert decisions == [True, False, False, False, False, True]


def test_event_idx_first_decision_is_always_yes(
    memory: GuestMemory, allocator: GuestAllocator
) -> None:
    pair = Pair(memory, allocator, features=EVENT_IDX)
    pair.driver.set_used_event(1000)
    pair.driver.add([b"a"])
    assert pair.echo()


def test_event_idx_asks_for_the_next_doorbell_when_the_ring_is_empty(
    memory: GuestMemory, allocator: GuestAllocator
) -> None:
    pair = Pair(memory, allocator, features=EVENT_IDX)
    for _ in range(3):
        pair.driver.add([b"a"])
    assert pair.driver.wants_kick()
    pair.echo()
    assert pair.driver.avail_event == 3
    pair.driver.collect()
    pair.driver.add([b"a"])
    assert pair.driver.wants_kick()
    pair.driver.add([b"a"])
    assert not pair.driver.wants_kick()


@pytest.mark.parametrize(
    ("event", "new", "old", "needed"),
    [
        (0, 1, 0, True),
        (1, 1, 0, False),
        (0xFFFF, 0, 0xFFFF, True),
        (0xFFFE, 1, 0xFFFF, False),
        (0, 2, 0xFFFE, True),
        (7, 7, 7, False),
    ],
)
def test_need_event_arithmetic(event: int, new: int, old: int, needed: bool) -> None:
    assert need_event(event, new, old) is needed


# -- hostile drivers (reference C.7) ---------------------------------------------------------------


def test_avail_index_too_far_ahead(pair: Pair) -> None:
    pair.driver.set_avail_idx(9)
    with pytest.raises(DeviceBroken, match=r"avail\.idx 9"):
        pair.queue.pop()


def test_avail_index_that_goes_back(pair: Pair) -> None:
    pair.driver.add([b"a"])
    pair.echo()
    pair.driver.set_avail_idx(0)
    with pytest.raises(DeviceBroken, match="more than 8"):
        pair.queue.pop()


def test_more_chains_in_flight_than_descriptors(pair: Pair) -> None:
    for _ in range(8):
        pair.driver.add([b"a"])
    held = list(pair.queue.chains())
    pair.driver.offer(0)
    with pytest.raises(DeviceBroken, match="8 in flight"):
        pair.queue.pop()
    assert len(held) == 8


def test_head_outside_the_table(pair: Pair) -> None:
    pair.driver.offer(8)
    with pytest.raises(DeviceBroken, match="out of the table"):
        pair.queue.pop()


def test_next_outside_the_table(pair: Pair) -> None:
    pair.driver.set_descriptor(0, 0x1000, 4, NEXT, 8)
    pair.driver.offer(0)
    with pytest.raises(DeviceBroken, match="out of the table"):
        pair.queue.pop()


@pytest.mark.parametrize("length", [1, 2, 8])
def test_loops(pair: Pair, length: int) -> None:
    for index in range(length):
        pair.driver.set_descriptor(index, 0x1000, 4, NEXT, (index + 1) % length)
    pair.driver.offer(0)
    with pytest.raises(DeviceBroken, match="loop"):
        pair.queue.pop()


def offer_indirect(pair: Pair, table: bytes, length: int | None = None, flags: int = 4) -> None:
    pair.memory.write(0x8000, table)
    pair.driver.set_descriptor(0, 0x8000, len(table) if length is None else length, flags, 1)
    pair.driver.offer(0)


@pytest.mark.parametrize("length", [0, 15, 17, 16 * MAX_CHAIN_LENGTH + 16, 0xFFFFFFF0])
def test_indirect_table_of_impossible_length(pair: Pair, length: int) -> None:
    offer_indirect(pair, bytes(16), length)
    with pytest.raises(DeviceBroken, match="indirect table size"):
        pair.queue.pop()


def test_indirect_table_outside_ram(pair: Pair) -> None:
    pair.driver.set_descriptor(0, RAM - 8, 16, DescriptorFlags.INDIRECT, 0)
    pair.driver.offer(0)
    with pytest.raises(DeviceBroken, match="not in guest RAM"):
        pair.queue.pop()


def test_nested_indirect_table(pair: Pair) -> None:
    offer_indirect(pair, (0x8000).to_bytes(8, "little") + b"\x10\0\0\0\x04\0\0\0")
    with pytest.raises(DeviceBroken, match="not allowed"):
        pair.queue.pop()


def test_indirect_with_next(pair: Pair) -> None:
    offer_indirect(pair, bytes(16), flags=4 | 1)
    with pytest.raises(DeviceBroken, match="not allowed"):
        pair.queue.pop()


def test_indirect_that_was_not_negotiated(memory: GuestMemory, allocator: GuestAllocator) -> None:
    pair = Pair(memory, allocator, features=0)
    offer_indirect(pair, bytes(16))
    with pytest.raises(DeviceBroken, match="not allowed"):
        pair.queue.pop()


def test_loop_inside_an_indirect_table(pair: Pair) -> None:
    offer_indirect(pair, (0x1000).to_bytes(8, "little") + b"\x04\0\0\0\x01\0\0\0")
    with pytest.raises(DeviceBroken, match="loop"):
        pair.queue.pop()


def test_readable_after_writable(pair: Pair) -> None:
    pair.driver.set_descriptor(0, 0x1000, 4, NEXT | WRITE, 1)
    pair.driver.set_descriptor(1, 0x2000, 4, 0, 0)
    pair.driver.offer(0)
    with pytest.raises(DeviceBroken, match="after a writable"):
        pair.queue.pop()


@pytest.mark.parametrize(
    ("gpa", "length"),
    [(RAM, 1), (RAM - 1, 2), (0xFEE00000, 4), ((1 << 64) - 4, 4), ((1 << 64) - 4, 8), (0, RAM + 1)],
)
def test_buffer_that_is_not_ram(pair: Pair, gpa: int, length: int) -> None:
    pair.driver.set_descriptor(0, gpa, length, WRITE, 0)
    pair.driver.offer(0)
    with pytest.raises(DeviceBroken, match="not in guest RAM"):
        pair.queue.pop()


def test_chain_of_more_than_4_gib(pair: Pair, memory: GuestMemory) -> None:
    memory.add(4 * GIB, Region(3 * GIB), name="big")
    pair.driver.set_descriptor(0, 4 * GIB, 3 * GIB, NEXT, 1)
    pair.driver.set_descriptor(1, 4 * GIB, 3 * GIB, 0, 0)
    pair.driver.offer(0)
    with pytest.raises(DeviceBroken, match="longer than 4 GiB"):
        pair.queue.pop()


def test_request_is_copied_when_read(pair: Pair) -> None:
    pair.driver.set_descriptor(0, 0x1000, 4, 0, 0)
    pair.memory.write(0x1000, b"good")
    pair.driver.offer(0)
    chain = pair.queue.pop()
    assert chain is not None
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


class Pluggable:
    """1 MiB at 1 GiB that can be unplugged: a virtio-mem block."""

    def __init__(self, memory: GuestMemory) -> None:
        self.occupancy = FakeOccupancy((0, MIB))
        memory.add(GIB, Region(MIB), name="vmem", occupancy=self.occupancy)

    def unplug(self) -> None:
        self.occupancy.plugged.clear()


def test_ring_whose_memory_was_unplugged(memory: GuestMemory) -> None:
    block = Pluggable(memory)
    pair = Pair(memory, GuestAllocator(memory, GIB, GIB + MIB))
    pair.driver.add([b"a"], [1])
    block.unplug()
    with pytest.raises(DeviceBroken, match="unplugged"):
        pair.queue.pop()


def test_used_ring_unplugged_while_a_chain_is_in_flight(memory: GuestMemory) -> None:
    block = Pluggable(memory)
    pair = Pair(memory, GuestAllocator(memory, GIB, GIB + MIB))
    pair.driver.add([b"a"], [1])
    chain = pair.queue.pop()
    assert chain is not None
    block.unplug()
    for use in (chain.read, lambda: chain.write(b"x"), lambda: pair.queue.complete(chain, 1)):
        with pytest.raises(DeviceBroken, match="unplugged"):
            use()


def test_closed_queue_touches_nothing(pair: Pair) -> None:
    pair.driver.add([b"a"], [1])
    pair.driver.add([b"b"], [1])
    chain = pair.queue.pop()
    assert chain is not None
    before = pair.memory.read(0, RAM)
    pair.queue.close()
    chain.write(b"z")
    pair.queue.complete(chain, 1)
    assert pair.queue.pop() is None
    assert not pair.queue.publish()
    assert pair.memory.read(0, RAM) == before


def test_buffer_across_two_adjacent_regions(pair: Pair, memory: GuestMemory) -> None:
    memory.add(RAM, Region(MIB), name="more")
    memory.write(RAM - 2, b"abcd")
    pair.driver.set_descriptor(0, RAM - 2, 4, NEXT, 1)
    pair.driver.set_descriptor(1, RAM - 3, 4, WRITE, 0)
    pair.driver.offer(0)
    chain = pair.queue.pop()
    assert chain is not None
    assert chain.read() == b"abcd"
    chain.write(b"WXYZ")
    assert memory.read(RAM - 3, 4) == b"WXYZ"
