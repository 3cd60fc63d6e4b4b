"""What holds for split and packed queues alike, device side (reference C)."""

from collections.abc import Callable
from typing import Any

import pytest

from minivmm.errors import DeviceBroken
from minivmm.memory.guest import GuestMemory
from minivmm.memory.region import Region
from minivmm.spec.virtio import Feature
from minivmm.testing.buffers import GuestAllocator
from minivmm.testing.sparse import FakeOccupancy
from minivmm.units import GIB, MIB
from minivmm.virtio.queue.ring import BURST_CHAINS, BURST_DESCRIPTORS, MAX_CHAIN_LENGTH

INDIRECT = Feature.INDIRECT_DESC.mask
IN_ORDER = Feature.IN_ORDER.mask
RAM = 4 * MIB

MakePair = Callable[..., Any]


@pytest.fixture
def pair(make_pair: MakePair, ring_format: int) -> Any:
    return make_pair(ring_format | INDIRECT)


def test_empty_ring_has_no_chain(pair: Any) -> None:
    assert pair.queue.pop() is None
    assert not pair.queue.publish()


def test_request_and_reply(pair: Any) -> None:
    head = pair.driver.add([b"ping"], [4])
    assert pair.echo()
    used = pair.driver.collect()
    assert [(u.head, u.written, u.data) for u in used] == [(head, 4, b"ping")]


@pytest.mark.rule("SPL-D-1")
def test_framing_does_not_matter(make_pair: MakePair, ring_format: int) -> None:
    """SPL-D-1."""
    pair = make_pair(ring_format, size=64)
    message = bytes(range(24))
    pair.driver.add([message[i : i + 1] for i in range(24)], [1] * 10)
    pair.echo()
    assert pair.driver.collect()[0].data == message[:10]


def test_chain_tells_its_sizes_and_reads_no_more_than_asked(pair: Any) -> None:
    pair.driver.add([b"abc", b"defg"], [5, 6])
    chain = pair.queue.pop()
    assert (chain.readable, chain.writable) == (7, 11)
    assert chain.read(0) == b""
    assert chain.read(5) == b"abcde"
    assert chain.read(100) == b"abcdefg"


def test_write_that_does_not_fit_is_a_programming_error(pair: Any) -> None:
    pair.driver.add([], [4])
    chain = pair.queue.pop()
    with pytest.raises(ValueError, match="5 bytes"):
        chain.write(b"12345")


@pytest.mark.parametrize("direct", [None, 0])
def test_empty_buffers_are_ignored(pair: Any, direct: int | None) -> None:
    pair.driver.add([b"", b"xy", b""], [0, 2], direct=direct)
    pair.echo()
    assert pair.driver.collect()[0].data == b"xy"


def test_nothing_is_visible_before_publish(pair: Any) -> None:
    pair.driver.add([b"a"], [1])
    chain = pair.queue.pop()
    pair.queue.complete(chain, 0)
    assert pair.driver.collect() == []
    pair.queue.publish()
    assert len(pair.driver.collect()) == 1


def test_chains_may_be_completed_out_of_order(pair: Any) -> None:
    heads = [pair.driver.add([bytes([n])], [1]) for n in range(3)]
    for chain in reversed(list(pair.queue.chains())):
        pair.queue.complete(chain)
    pair.queue.publish()
    assert [used.head for used in pair.driver.collect()] == heads[::-1]


@pytest.mark.rule("GEN-D-9")
def test_with_in_order_chains_come_back_as_they_were_made_available(
    make_pair: MakePair, ring_format: int
) -> None:
    """GEN-D-9, whatever the device model does."""
    pair = make_pair(ring_format | IN_ORDER)
    heads = [pair.driver.add([bytes([n])], [1]) for n in range(4)]
    chains = list(pair.queue.chains())
    pair.queue.complete(chains[2], 0)
    pair.queue.complete(chains[1], 1)
    assert not pair.queue.publish()
    assert pair.driver.collect() == []
    pair.queue.complete(chains[0], 0)
    assert pair.queue.publish()
    assert [(used.head, used.written) for used in pair.driver.collect()] == [
        (heads[0], 0),
        (heads[1], 1),
        (heads[2], 0),
    ]
    pair.queue.complete(chains[3])
    pair.queue.publish()
    assert [used.head for used in pair.driver.collect()] == heads[3:]


@pytest.mark.parametrize("order", [0, IN_ORDER])
def test_completing_what_is_not_in_flight_is_a_programming_error(
    make_pair: MakePair, ring_format: int, order: int
) -> None:
    pair, other = make_pair(ring_format | order), make_pair(ring_format | order)
    pair.driver.add([b"a"])
    other.driver.add([b"a"])
    chain = pair.queue.pop()
    assert other.queue.pop() is not None
    with pytest.raises(ValueError, match="not in flight"):
        other.queue.complete(chain)
    pair.queue.complete(chain)
    with pytest.raises(ValueError, match="not in flight"):
        pair.queue.complete(chain)


@pytest.mark.parametrize("size", [1, 2, 128, 32768])
def test_every_queue_size_works(make_pair: MakePair, ring_format: int, size: int) -> None:
    pair = make_pair(ring_format | INDIRECT, size=size)
    for n in range(5):
        pair.driver.add([bytes([n])], [1], direct=0)
        pair.echo()
        assert [used.data for used in pair.driver.collect()] == [bytes([n])]


def test_work_per_call_is_bounded_by_the_queue_size(pair: Any) -> None:
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


def test_work_per_call_is_bounded_for_large_queues(make_pair: MakePair, ring_format: int) -> None:
    pair = make_pair(ring_format, size=1024)
    for _ in range(BURST_CHAINS + 1):
        pair.driver.add([b"x"])
    assert len(list(pair.queue.chains())) == BURST_CHAINS
    assert pair.queue.interrupted


def test_work_per_call_is_bounded_for_long_chains(pair: Any) -> None:
    length = BURST_DESCRIPTORS // 4
    for _ in range(5):
        pair.driver.add([b"x"] * length, direct=0)
    assert len(list(pair.queue.chains())) == 4
    assert pair.queue.interrupted


def test_exactly_a_full_ring_is_not_an_interruption(pair: Any) -> None:
    for _ in range(8):
        pair.driver.add([b"x"])
    assert len(list(pair.queue.chains())) == 8
    assert not pair.queue.interrupted


def test_longest_chain_and_one_more(make_pair: MakePair, ring_format: int) -> None:
    pair = make_pair(ring_format, size=4096)
    pair.driver.add([b"x"] * MAX_CHAIN_LENGTH)
    chain = pair.queue.pop()
    assert chain.read() == b"x" * MAX_CHAIN_LENGTH
    pair.driver.add([b"x"] * (MAX_CHAIN_LENGTH + 1))
    with pytest.raises(DeviceBroken, match="too long"):
        pair.queue.pop()


# -- memory that goes away -------------------------------------------------------------------------


class Pluggable:
    """1 MiB at 1 GiB that can be unplugged: a virtio-mem block."""

    def __init__(self, memory: GuestMemory) -> None:
        self.occupancy = FakeOccupancy((0, MIB))
        memory.add(GIB, Region(MIB), name="vmem", occupancy=self.occupancy)
        self.allocator = GuestAllocator(memory, GIB, GIB + MIB)

    def unplug(self) -> None:
        self.occupancy.plugged.clear()


def test_ring_whose_memory_was_unplugged(
    memory: GuestMemory, make_pair: MakePair, ring_format: int
) -> None:
    block = Pluggable(memory)
    pair = make_pair(ring_format, where=block.allocator)
    pair.driver.add([b"a"], [1])
    block.unplug()
    with pytest.raises(DeviceBroken, match="unplugged"):
        pair.queue.pop()


def test_ring_unplugged_while_a_chain_is_in_flight(
    memory: GuestMemory, make_pair: MakePair, ring_format: int
) -> None:
    block = Pluggable(memory)
    pair = make_pair(ring_format, where=block.allocator)
    pair.driver.add([b"a"], [1])
    chain = pair.queue.pop()
    block.unplug()

    def finish() -> None:
        pair.queue.complete(chain, 1)
        pair.queue.publish()

    for use in (chain.read, lambda: chain.write(b"x"), finish):
        with pytest.raises(DeviceBroken, match="unplugged"):
            use()


@pytest.mark.rule("GEN-D-5")
def test_closed_queue_touches_nothing(pair: Any) -> None:
    pair.driver.add([b"a"], [1])
    pair.driver.add([b"b"], [1])
    chain = pair.queue.pop()
    before = pair.memory.read(0, RAM)
    pair.queue.close()
    chain.write(b"z")
    pair.queue.complete(chain, 1)
    assert pair.queue.pop() is None
    assert not pair.queue.publish()
    assert pair.memory.read(0, RAM) == before


def test_inspect_names_the_format_and_counts_what_is_in_flight(pair: Any, ring_format: int) -> None:
    pair.driver.add([b"a"])
    pair.queue.pop()
    shown = pair.queue.inspect()
    assert shown["format"] == ("packed" if ring_format else "split")
    assert shown["in-flight"] == 1
