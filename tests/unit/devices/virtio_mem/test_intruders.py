"""Accesses to unplugged blocks are named; reads of them give zeroes, writes vanish."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from minivmm.devices.virtio_mem.intruders import KEPT, UNPLUGS_KEPT, Intruders, Intrusion
from minivmm.memory.layout import Window
from minivmm.memory.region import Region
from minivmm.testing.sparse import FakeOccupancy
from minivmm.units import GIB, MIB

BASE = 5 * GIB
BLOCK = 2 * MIB


class Yard:
    """16 blocks at BASE, of which number 3 and 4 are plugged."""

    def __init__(self) -> None:
        self.region = Region(16 * BLOCK)
        self.occupancy = FakeOccupancy((3 * BLOCK, 2 * BLOCK))
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.told: list[Intrusion] = []
        self.intruders = Intruders(
            block_size=BLOCK,
            window=Window(BASE, 16 * BLOCK),
            region=self.region,
            occupancy=self.occupancy,
            trace=lambda name, **fields: self.events.append((name, fields)),
        )
        self.intruders.accessor = lambda: (1, 0xFFFF_8000)
        self.intruders.on_intrusion = self.told.append


@pytest.fixture
def yard() -> Iterator[Yard]:
    made = Yard()
    yield made
    made.region.close()


def test_a_write_is_named_and_vanishes(yard: Yard) -> None:
    yard.intruders.write(BLOCK + 8, 8, 0x1234)

    assert len(yard.told) == yard.intruders.count == 1
    found = yard.told[0]
    assert (found.source, found.vcpu, found.rip) == ("cpu", 1, 0xFFFF_8000)
    assert (found.gpa, found.size, found.write) == (BASE + BLOCK + 8, 8, True)
    assert (found.block, found.block_start) == (1, BASE + BLOCK)
    assert found.age is None
    assert bytes(yard.region.view(BLOCK + 8, 8)) == bytes(8)


def test_a_read_is_named_and_gives_zeroes(yard: Yard) -> None:
    yard.region.view(0, 4)[:] = b"\xff" * 4

    assert yard.intruders.read(0, 4) == 0

    assert [(i.gpa, i.size, i.write, i.block) for i in yard.told] == [(BASE, 4, False, 0)]


@pytest.mark.parametrize(
    ("offset", "block"),
    [(3 * BLOCK - 1, 2), (5 * BLOCK, 5), (16 * BLOCK - 1, 15)],
)
def test_blocks_end_where_the_next_begins(yard: Yard, offset: int, block: int) -> None:
    yard.intruders.write(offset, 1, 1)

    assert yard.told[0].block == block


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_memory_plugged_meanwhile_is_served(yard: Yard, size: int) -> None:
    offset = 5 * BLOCK - size

    yard.intruders.write(offset, size, 0xA1A2_A3A4_A5A6_A7A8)

    wanted = 0xA1A2_A3A4_A5A6_A7A8 & (1 << 8 * size) - 1
    assert bytes(yard.region.view(offset, size)) == wanted.to_bytes(size, "little")
    assert yard.intruders.read(offset, size) == wanted
    assert yard.told == []


@pytest.mark.rule("MEM-D-20")
def test_reads_are_no_intrusion_where_they_are_allowed(yard: Yard) -> None:
    yard.occupancy.readable = 2 * BLOCK

    assert yard.intruders.read(2 * BLOCK - 8, 8) == 0
    assert yard.told == []
    yard.intruders.read(2 * BLOCK, 8)
    yard.intruders.read(2 * BLOCK - 4, 8)
    yard.intruders.write(0, 8, 1)
    assert [intrusion.write for intrusion in yard.told] == [False, False, True]


def test_it_is_known_how_long_ago_the_block_was_unplugged(yard: Yard) -> None:
    yard.intruders.unplugged(6, 4, 100.0)
    yard.intruders.unplugged(8, 1, 103.0)

    for block in (5, 6, 8, 9, 10):
        yard.intruders.write(block * BLOCK, 8, 0)

    when = [None if i.age is None else i.time - i.age for i in yard.told]
    assert when == [None, pytest.approx(100), pytest.approx(103), pytest.approx(100), None]


def test_what_is_remembered_is_bounded(yard: Yard) -> None:
    for _ in range(UNPLUGS_KEPT + 1):
        yard.intruders.unplugged(7, 1, 1.0)
    for _ in range(3 * KEPT):
        yard.intruders.write(0, 1, 0)

    assert yard.intruders.count == 3 * KEPT
    assert len(yard.intruders.recent) == KEPT
    assert len(yard.intruders._unplugs) == UNPLUGS_KEPT


def test_dma_is_named_with_the_first_block_that_is_not_plugged(yard: Yard) -> None:
    yard.intruders.dma(3 * BLOCK, 8 * BLOCK)
    yard.intruders.dma(2 * BLOCK + 16, 4)

    assert [(i.source, i.vcpu, i.rip, i.write) for i in yard.told] == [
        ("dma", None, None, None)
    ] * 2
    assert [(i.gpa, i.size, i.block) for i in yard.told] == [
        (BASE + 3 * BLOCK, 8 * BLOCK, 5),
        (BASE + 2 * BLOCK + 16, 4, 2),
    ]


def test_lines_say_it_all(yard: Yard) -> None:
    yard.intruders.write(BLOCK + 8, 8, 1)
    yard.intruders.dma(0, 16)

    assert [str(intrusion) for intrusion in yard.told] == [
        "cpu1 at rip 0xffff8000 wrote 8 bytes at gpa 0x140200008: block 1"
        " (0x140200000-0x1403fffff) is not plugged, not lately either",
        "DMA accessed 16 bytes at gpa 0x140000000: block 0"
        " (0x140000000-0x1401fffff) is not plugged, not lately either",
    ]
    assert [name for name, _ in yard.events] == ["intrusion", "intrusion"]
    assert yard.events[0][1]["what"] == str(yard.told[0])
    assert yard.intruders.inspect() == {"count": 2, "recent": [str(i) for i in yard.told]}


def test_the_age_is_in_the_line(yard: Yard) -> None:
    yard.intruders.unplugged(1, 1, 0.0)
    yard.intruders.read(BLOCK, 1)

    found = yard.told[0]
    assert str(found).endswith(f"is not plugged, unplugged {found.time:.1f} s ago")
