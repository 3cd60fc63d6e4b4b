"""Split rings (reference C.3, SPL-D), on the memory device and the smallest one.

Rules that the queue's own tests prove have their marks there.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from minivmm.spec import virtio
from minivmm.spec.virtio import DescriptorFlags, Feature
from minivmm.spec.virtio_mem import MemRequest, MemResponse, RequestType
from minivmm.testing.driver import DeviceBench
from minivmm.testing.echo import EchoDevice
from minivmm.testing.mem_ordeal import REGION, MemOrdeal
from minivmm.testing.ordeal import Outcome
from minivmm.testing.raw_ring import Raw
from minivmm.testing.ring import SplitDriver
from minivmm.virtio.options import VirtioOptions
from minivmm.virtio.queue.queue import Chain, VirtQueue

VERSION_1, EVENT_IDX = Feature.VERSION_1.mask, Feature.EVENT_IDX.mask
INDIRECT = Feature.INDIRECT_DESC.mask
WRITE, TABLE = int(DescriptorFlags.WRITE), int(DescriptorFlags.INDIRECT)
PLUG = MemRequest(type=RequestType.PLUG, addr=REGION, nb_blocks=3).build()


def started(features: int) -> Iterator[DeviceBench]:
    device = EchoDevice()
    device.options = VirtioOptions()
    with DeviceBench(device) as bench:
        bench.driver.start(VERSION_1 | features)
        bench.irq.take()
        yield bench


@pytest.fixture
def plain() -> Iterator[DeviceBench]:
    """Without EVENT_IDX."""
    yield from started(INDIRECT)


@pytest.fixture
def indexed() -> Iterator[DeviceBench]:
    """With EVENT_IDX."""
    yield from started(INDIRECT | EVENT_IDX)


def ring_of(bench: DeviceBench) -> SplitDriver:
    ring = bench.driver.queues[0]
    assert isinstance(ring, SplitDriver)
    return ring


def echo(bench: DeviceBench, count: int = 1) -> int:
    """Have so many chains echoed with one doorbell; how many interrupts came."""
    for _ in range(count):
        ring_of(bench).add([b"x"], [1])
    bench.driver.kick(0)
    return len(bench.irq.take())


# -- framing ---------------------------------------------------------------------------------------


@pytest.mark.rule("SPL-D-1")
@pytest.mark.parametrize("cut", range(1, 34))
def test_request_and_answer_cut_anywhere(split: MemOrdeal, cut: int) -> None:
    """24 bytes of request and 10 of answer: at each place, empty descriptors included."""
    asked = [PLUG[:cut], PLUG[cut:]]
    there = max(0, cut - 24)
    used = split.driver.submit(0, *asked, writable=(there, 10 - there))
    assert [one.data for one in used] == [MemResponse().build()]


@pytest.mark.rule("SPL-D-1")
def test_request_and_answer_in_single_bytes(split: MemOrdeal) -> None:
    pieces = [PLUG[n : n + 1] for n in range(24)]
    (used,) = split.driver.submit(0, *pieces, writable=(1,) * 10)
    assert (used.written, used.data) == (10, bytes(10))


@pytest.mark.rule("SPL-D-3")
def test_write_on_the_descriptor_of_a_table(split: MemOrdeal) -> None:
    """The request in the table is read and its answer written, as if it were not there."""
    reply = split.room()
    split.offer_table(split.question(), reply, flags=TABLE | WRITE)
    split.raw.granted = [(reply.gpa, reply.length)]
    split.expect_answer(reply)


@pytest.mark.rule("SPL-D-4")
@pytest.mark.parametrize("direct", range(1, 24))
def test_direct_descriptors_before_a_table(split: MemOrdeal, direct: int) -> None:
    ring = split.driver.queues[0]
    ring.add([PLUG[n : n + 1] for n in range(24)], [4, 6], direct=direct)
    split.driver.kick(0)
    assert [used.data for used in ring.collect()] == [bytes(10)]


@pytest.mark.rule("SPL-D-2")
def test_only_the_answer_and_the_used_ring_are_written(split: MemOrdeal) -> None:
    """Ordeal.check compares all of memory: table, available ring and requests stay as they are."""
    replies = [split.room() for _ in range(3)]
    for reply in replies:
        split.raw.offer(split.question(), reply)
    table = split.raw.table(split.question(), replies[0])
    split.raw.offer(Raw(split.put(table), len(table), TABLE))
    split.raw.granted = [(reply.gpa, MemResponse.SIZE) for reply in replies]
    layout = split.driver.queues[0].layout
    assert split.raw.device_parts == [(layout.device, virtio.used_ring_size(layout.size))]
    assert len(split.check(Outcome.ANSWERED)) == 4


# -- suppression -----------------------------------------------------------------------------------


@pytest.mark.rule("SPL-D-5")
@pytest.mark.parametrize("used_event", [0, 1, 5, 0x7FFF, 0xFFFF])
def test_without_event_idx_only_the_flag_decides(plain: DeviceBench, used_event: int) -> None:
    ring = ring_of(plain)
    for flags, interrupts in ((0, 1), (1, 0), (1, 0), (0, 1)):
        plain.memory.write(ring.layout.driver, flags.to_bytes(2, "little"))
        ring.set_used_event(used_event)
        assert echo(plain) == interrupts


@pytest.mark.rule("SPL-D-6")
@pytest.mark.parametrize("flags", [0, 1, 0xFFFF])
def test_with_event_idx_only_the_index_decides(indexed: DeviceBench, flags: int) -> None:
    """Used entries 0, 1, 2, ...: the first decision is always yes, then at 3 and 6 as asked."""
    ring, interrupts = ring_of(indexed), []
    for used_event in (0x4000, 3, 3, 3, 6, 6, 6, 6):
        ring.memory.write(ring.layout.driver, flags.to_bytes(2, "little"))
        ring.set_used_event(used_event)
        interrupts.append(echo(indexed))
    assert interrupts == [1, 0, 0, 1, 0, 0, 1, 0]


@pytest.mark.rule("SPL-D-6")
@pytest.mark.parametrize("start", [1, 65536 - 22])
def test_in_batches_the_interrupt_comes_if_the_index_is_passed(
    indexed: DeviceBench, start: int
) -> None:
    """Batches of five are used at once, also where indices begin again at 0."""
    ring = ring_of(indexed)
    echo(indexed)
    ring.collect()
    done = 1
    while done < start:
        done += offer_empty(indexed, min(64, start - done))
    for ahead in (-2, -1, 0, 1, 2, 3, 4, 5, 6):
        indexed.irq.take()
        ring.set_used_event(done + ahead)
        done += offer_empty(indexed, 5)
        assert len(indexed.irq.take()) == int(0 <= ahead < 5), (ahead, done)


def offer_empty(bench: DeviceBench, count: int) -> int:
    """So many chains of an empty descriptor are used by one doorbell."""
    for _ in range(count):
        ring_of(bench).offer(0)
    bench.driver.kick(0)
    return count


@pytest.mark.rule("SPL-D-8", "SPL-D-9")
@pytest.mark.parametrize("name", ["plain", "indexed"])
def test_used_flags_stay_0(name: str, request: pytest.FixtureRequest) -> None:
    """Doorbells are never suppressed by flag, so that none can get lost."""
    bench: DeviceBench = request.getfixturevalue(name)
    ring = ring_of(bench)
    for count in (1, 5, 30):
        for _ in range(count):
            ring.add([b"x"], [1])
        assert ring.used_flags == 0
        assert ring.wants_kick()
        bench.driver.kick(0)
        assert ring.used_flags == 0
        ring.collect()


@pytest.mark.rule("SPL-D-10")
@pytest.mark.parametrize("name", ["plain", "indexed"])
def test_doorbells_for_nothing(name: str, request: pytest.FixtureRequest) -> None:
    bench: DeviceBench = request.getfixturevalue(name)
    before = ring_of(bench).used_idx
    for _ in range(50):
        bench.driver.kick(0)
        bench.driver.kick(1, by_exit=True)
    assert (ring_of(bench).used_idx, bench.irq.take()) == (before, [])
    assert bench.driver.request(0, b"fine", 4) == b"fine"


# -- order of stores -------------------------------------------------------------------------------


class Watched(EchoDevice):
    """Looks into memory between the steps of handing a chain back."""

    def __init__(self) -> None:
        super().__init__()
        self.bench: DeviceBench | None = None
        self.seen: list[tuple[str, int, int, int]] = []

    def handle_queue(self, index: int, queue: VirtQueue) -> None:
        for chain in queue.chains():
            data = chain.read(chain.writable)
            chain.write(data)
            self._look("written", chain, 0)
            queue.complete(chain, len(data))
            self._look("completed", chain, len(data))
            queue.publish()
            self._look("published", chain, len(data))

    def _look(self, when: str, chain: Chain, length: int) -> None:
        assert self.bench is not None
        ring = ring_of(self.bench)
        ((gpa, size),) = chain.writable_parts
        stored = int(self.memory.read(gpa, size) == b"data"[:size])
        self.seen.append((when, stored, ring.used_element(0).len, ring.used_idx))


@pytest.mark.rule("SPL-D-7")
def test_data_then_used_element_then_used_index() -> None:
    """x86 keeps the order of stores, so that of the program is what the driver sees (C.6)."""
    device = Watched()
    with DeviceBench(device) as bench:
        device.bench = bench
        bench.driver.start(VERSION_1)
        ring_of(bench).add([b"data"], [4])
        bench.driver.kick(0)
    assert device.seen == [("written", 1, 0, 0), ("completed", 1, 4, 0), ("published", 1, 4, 1)]


@pytest.mark.rule("SPL-D-7")
@pytest.mark.parametrize("size", [10, 11, 64])
def test_used_length_is_what_was_written_from_the_start(split: MemOrdeal, size: int) -> None:
    ring = split.driver.queues[0]
    ring.add([PLUG], [size])
    split.driver.kick(0)
    (used,) = ring.collect()
    assert used.written == MemResponse.SIZE
    assert used.buffer[MemResponse.SIZE :] == bytes(size - MemResponse.SIZE)
