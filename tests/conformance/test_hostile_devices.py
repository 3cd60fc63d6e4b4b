"""The hostile catalogue (reference C.7) on all queues of all devices, in both ring formats."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from minivmm.spec.virtio import DescriptorFlags, Feature
from minivmm.spec.virtio_balloon import Queue
from minivmm.spec.virtio_console import (
    CONTROL_RECEIVE_QUEUE,
    CONTROL_TRANSMIT_QUEUE,
    NO_PORT,
    ControlMessage,
    Event,
)
from minivmm.testing.conversations import Kind
from minivmm.testing.ordeal import Ordeal, Outcome
from minivmm.testing.raw_ring import Raw
from minivmm.units import MIB

BROKEN = Outcome.BROKEN
WRITE, TABLE = int(DescriptorFlags.WRITE), int(DescriptorFlags.INDIRECT)
RAM_END = 16 * MIB
QUEUES = [
    *[("mem", 0), ("blk", 0), ("rng", 0)],
    *[("balloon", queue.value) for queue in (Queue.INFLATE, Queue.DEFLATE, Queue.STATS)],
    ("balloon", Queue.REPORTING.value),
    *[("console", index) for index in range(6)],
]
"""Console: port 0, the control queues, port 1, each to and from the driver; others are like it."""


@pytest.fixture(params=QUEUES, ids=[f"{name}-{index}" for name, index in QUEUES])
def ordeal(
    request: pytest.FixtureRequest, device_kinds: dict[str, Kind], packed: bool
) -> Iterator[Ordeal]:
    name, index = request.param
    made = Ordeal(replace(device_kinds[name], queue=index), packed=packed, size=1024)
    if (name, index) == ("console", CONTROL_RECEIVE_QUEUE):  # only looked at with something to say
        ready = ControlMessage(NO_PORT, Event.DEVICE_READY, 1).build()
        made.driver.submit(CONTROL_TRANSMIT_QUEUE, ready)
    yield made
    made.close()


def fill(ordeal: Ordeal, chains: int, *entries: Raw) -> None:
    """The ring gets so many tables with these entries, one and the same."""
    table = ordeal.raw.table(*entries)
    gpa = ordeal.put(table)
    for number in range(chains):
        ordeal.raw.offer(Raw(gpa, len(table), TABLE), identifier=number)
    ordeal.raw.granted.append((0, RAM_END))


def test_buffers_nowhere(ordeal: Ordeal) -> None:
    ordeal.raw.offer(Raw(1 << 63, 64))
    ordeal.check(BROKEN, "not in guest RAM")


def test_buffers_in_the_wrong_order(ordeal: Ordeal) -> None:
    ordeal.raw.offer(Raw(0x9000, 64, WRITE), Raw(0x8000, 64))
    ordeal.check(BROKEN, "after a writable one")


def test_table_without_an_entry(ordeal: Ordeal) -> None:
    ordeal.raw.offer(Raw(0x8000, 0, TABLE))
    ordeal.check(BROKEN, "indirect table size 0")


def test_chains_of_nothing(ordeal: Ordeal) -> None:
    """Zero bytes either way: some devices need more and break, none does anything else."""
    fill(ordeal, 200, Raw(0, 0))
    ordeal.check(None)


def test_4_gib_to_read_many_times_over(ordeal: Ordeal) -> None:
    """Nobody copies more than its protocol may need."""
    fill(ordeal, 200, *[Raw(0, RAM_END)] * 255, Raw(0x8000, 64, WRITE))
    ordeal.check(None)


def test_4_gib_to_fill_many_times_over(ordeal: Ordeal) -> None:
    fill(ordeal, 200, Raw(0x8000, 64), *[Raw(MIB * 8, MIB * 8, WRITE)] * 511)
    ordeal.check(None)


@pytest.mark.parametrize("flags", [0, WRITE], ids=["readable", "writable"])
def test_longest_tables_in_a_full_ring(ordeal: Ordeal, flags: int) -> None:
    fill(ordeal, 1000, *[Raw(0x8000, 1, flags)] * 1024)
    ordeal.check(None)


@pytest.mark.parametrize("seed", range(3))
def test_random_content(ordeal: Ordeal, seed: int) -> None:
    """Well-formed chains of any sizes, with anything in them."""
    dice = random.Random(seed)
    for number in range(64):
        readable = [dice.randbytes(dice.choice([0, 1, 8, 16, 24, 64])) for _ in range(3)]
        chain = [Raw(ordeal.put(data), len(data)) for data in readable]
        chain += [Raw(0x8000 + 64 * n, dice.choice([0, 1, 10, 64]), WRITE) for n in range(2)]
        ordeal.raw.offer(*chain, identifier=number)
    ordeal.raw.granted.append((0, RAM_END))
    ordeal.check(None, changes=True)


@pytest.mark.parametrize("seed", range(3))
def test_random_ring(ordeal: Ordeal, seed: int) -> None:
    """All parts of the ring are noise, once it lives."""
    dice = random.Random(seed)
    layout = ordeal.driver.queues[ordeal.kind.queue].layout
    memory = ordeal.bench.memory
    memory.write(layout.descriptors, dice.randbytes(16 * layout.size))
    if not ordeal.packed:
        memory.write(layout.driver, dice.randbytes(6 + 2 * layout.size))
    ordeal.raw.granted.append((0, RAM_END))
    ordeal.check(None, changes=True)


def test_without_tables_and_event_index(device_kinds: dict[str, Kind], packed: bool) -> None:
    """Each device with the fewest ring features that there are."""
    plain = Feature.INDIRECT_DESC.mask | Feature.EVENT_IDX.mask | Feature.RING_RESET.mask
    for kind in device_kinds.values():
        ordeal = Ordeal(kind, packed=packed, without=plain)
        ordeal.raw.offer(Raw(0x8000, 16, TABLE))
        ordeal.check(BROKEN, "indirect is not allowed")
        ordeal.close()
