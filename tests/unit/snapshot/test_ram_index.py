"""The index of a `ram` file: what is damaged in it is said, never followed."""

from __future__ import annotations

import random
import struct
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from minivmm.errors import BadState
from minivmm.snapshot import index as module
from minivmm.snapshot.index import CHUNK, ID_SIZE, Index, Layer, Place, Run, compose, read_index
from minivmm.units import GIB, MIB

PAGE = 4096
PLACES = (Place(0, 64 * MIB, 0), Place(4 * GIB, GIB, 64 * MIB))
GOOD = Index(
    size=64 * MIB + GIB,
    places=PLACES,
    layers=(Layer("../a", bytes(ID_SIZE), 64 * MIB + GIB),),
    runs=(Run(MIB, PAGE, 0), Run(2 * MIB, MIB, 1), Run(4 * GIB, 2 * MIB, 0)),
    checksums=((0, 7), (32, 9)),
)


def changed(**fields: Any) -> bytes:
    return replace(GOOD, **fields).save_state()


def test_an_index_is_read_as_it_was_written() -> None:
    assert read_index(GOOD.save_state()) == GOOD


def test_every_byte_of_memory_has_its_place() -> None:
    assert GOOD.offset(5) == 5
    assert GOOD.offset(4 * GIB + 5) == 64 * MIB + 5


def test_overlays_are_the_declared_structures() -> None:
    assert struct.pack("<QQB", 1, 2, 3) == module.RUN.build({"gpa": 1, "size": 2, "layer": 3})
    assert struct.pack("<II", 1, 2) == module.CHECKSUM.build({"chunk": 1, "crc32": 2})


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"runs": (Run(MIB + 1, PAGE, 0),)}, "run"),
        ({"runs": (Run(MIB, PAGE + 1, 0),)}, "run"),
        ({"runs": (Run(MIB, 0, 0),)}, "run"),
        ({"runs": (Run(MIB, 2 * PAGE, 0), Run(MIB + PAGE, PAGE, 0))}, "run"),
        ({"runs": (Run(2 * MIB, PAGE, 0), Run(MIB, PAGE, 0))}, "run"),
        ({"runs": (Run(64 * MIB - PAGE, 2 * PAGE, 0),)}, "run"),
        ({"runs": (Run(GIB, PAGE, 0),)}, "run"),
        ({"runs": (Run((1 << 64) - PAGE, PAGE, 0),)}, "run"),
        ({"runs": (Run(MIB, (1 << 64) - PAGE, 0),)}, "run"),
        ({"runs": (Run(MIB, PAGE, 2),)}, "run"),
        ({"places": (Place(0, 64 * MIB, 0), Place(32 * MIB, GIB, 64 * MIB))}, "place"),
        ({"places": (Place(0, 64 * MIB, 0), Place(4 * GIB, GIB, 0))}, "place"),
        ({"places": (Place(0, 2 * GIB, 0),)}, "place"),
        ({"places": (Place(0, 64 * MIB, (1 << 64) - PAGE),)}, "place"),
        ({"places": (Place((1 << 64) - PAGE, 64 * MIB, 0),)}, "place"),
        ({"places": (Place(0, 64 * MIB, 3),)}, "place"),
        ({"layers": tuple(GOOD.layers * 16)}, "layers"),
        ({"layers": (Layer("", bytes(ID_SIZE), GOOD.size),)}, "layer"),
        ({"layers": (Layer("a\0b", bytes(ID_SIZE), GOOD.size),)}, "layer"),
        ({"layers": (Layer("a", bytes(ID_SIZE), PAGE),)}, "layer size"),
        ({"checksums": ((3, 1), (3, 1))}, "chunk"),
        ({"checksums": ((GOOD.size // CHUNK, 1),)}, "chunk"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(BadState) as caught:
        read_index(changed(**fields))
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_an_index_cut_short_anywhere_is_refused() -> None:
    data = GOOD.save_state()
    for length in range(len(data)):
        with pytest.raises(BadState):
            read_index(data[:length])
    with pytest.raises(BadState):
        read_index(data + b"\0")


def test_a_bit_flipped_anywhere_is_refused_or_still_makes_sense() -> None:
    data = GOOD.save_state()
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            found = read_index(bytes(flipped))
        except BadState as error:
            assert "\n" not in str(error)
            continue
        for run in found.runs:
            assert 0 <= found.offset(run.gpa) <= found.size - run.size
            assert run.layer <= len(found.layers)


def test_composed_runs_are_those_of_a_model_of_pages() -> None:
    dice = random.Random(11)

    def some(count: int) -> list[tuple[int, int]]:
        starts = sorted(dice.sample(range(0, 60, 4), count))
        return [(start, dice.randrange(1, 5)) for start in starts]

    for _ in range(300):
        own, forgotten, memory = some(3), some(4), some(9)
        base = [Run(at, size, dice.randrange(3)) for at, size in some(5)]
        wanted: dict[int, int] = {}
        for page in range(80):
            if any(run.gpa <= page < run.end for run in base) and not inside(page, forgotten):
                wanted[page] = 1 + next(run.layer for run in base if run.gpa <= page < run.end)
            if inside(page, own):
                wanted[page] = 0
            if not inside(page, memory):
                wanted.pop(page, None)
        # What is stored of an increment lies in what is forgotten of its base.
        found = compose(own, sorted_union(forgotten, own), base, memory)
        assert {page: run.layer for run in found for page in range(run.gpa, run.end)} == wanted
        assert all(one.end <= two.gpa for one, two in pairwise(found))


def inside(page: int, ranges: list[tuple[int, int]]) -> bool:
    return any(start <= page < start + size for start, size in ranges)


def sorted_union(*lists: list[tuple[int, int]]) -> list[tuple[int, int]]:
    pages = [page for page in range(80) if any(inside(page, ranges) for ranges in lists)]
    return [(page, 1) for page in pages]
