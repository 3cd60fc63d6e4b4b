"""What the `ram` file of a snapshot holds: which bytes of guest memory are where, and checksums.

Every region of guest memory has its place in the file, as large as the region and at its offset in
every snapshot of a chain: so where a byte is follows from its address. The file is sparse; what no
run names is zeroes, or no memory at all.

An incremental snapshot names files of earlier ones, its layers: layer 0 is its own file, layer 1
that of its base, layer 2 that of the base's base.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from construct import (
    Bytes,
    Const,
    GreedyBytes,
    Int8ul,
    Int16ul,
    Int32ul,
    Int64ul,
    PascalString,
    Prefixed,
    PrefixedArray,
    Struct,
)

from minivmm.memory.guest import GuestMemory
from minivmm.memory.ranges import Range, common, without
from minivmm.saved import build, parse, require
from minivmm.snapshot.format import ID_SIZE as ID_SIZE
from minivmm.units import MIB, align_up
from minivmm.write_log import PAGE

PART = "ram"
"""Name of the section, and of the file."""

CHUNK = 2 * MIB
"""Bytes of a file that share a checksum; the last chunk may be shorter."""

MOST_LAYERS = 16
"""Snapshots that can lean on each other, the whole one at the bottom included."""

PLACE = Struct("gpa" / Int64ul, "size" / Int64ul, "offset" / Int64ul)
RUN = Struct("gpa" / Int64ul, "size" / Int64ul, "layer" / Int8ul)
CHECKSUM = Struct("chunk" / Int32ul, "crc32" / Int32ul)
LAYER = Struct("path" / PascalString(Int16ul, "utf8"), "id" / Bytes(ID_SIZE), "size" / Int64ul)
FORM = Struct(
    "page" / Const(PAGE, Int32ul),
    "size" / Int64ul,
    "places" / PrefixedArray(Int16ul, PLACE),
    "layers" / PrefixedArray(Int8ul, LAYER),
    "runs" / Prefixed(Int32ul, GreedyBytes),
    "checksums" / Prefixed(Int32ul, GreedyBytes),
)
"""`runs` are RUNs and `checksums` CHECKSUMs without end; these are unpacked by overlays, as there
may be thousands of them, which construct takes 10 us each for."""

_RUN = struct.Struct("<QQB")
_CHECKSUM = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Place:
    """The region of `size` bytes at `gpa` is at `offset` of the file."""

    gpa: int
    size: int
    offset: int


@dataclass(frozen=True, slots=True)
class Run:
    """`size` bytes of guest memory at `gpa` are in the file of `layer`."""

    gpa: int
    size: int
    layer: int

    @property
    def end(self) -> int:
        """First address behind it."""
        return self.gpa + self.size


@dataclass(frozen=True, slots=True)
class Layer:
    """A snapshot that is leaned on: its directory from ours, its id, and its file's size."""

    path: str
    id: bytes
    size: int


@dataclass(frozen=True)
class Index:
    """`places` and `runs` by address, disjoint; `checksums` are (chunk, CRC-32) of our own file."""

    size: int
    places: tuple[Place, ...]
    layers: tuple[Layer, ...]
    runs: tuple[Run, ...]
    checksums: tuple[tuple[int, int], ...]

    def offset(self, gpa: int) -> int:
        """Where in every file the byte at `gpa` is."""
        place = self.places[bisect_right(self.places, gpa, key=lambda one: one.gpa) - 1]
        return place.offset + gpa - place.gpa

    def save_state(self) -> bytes:
        """Its bytes."""
        return build(
            FORM,
            size=self.size,
            places=[{"gpa": p.gpa, "size": p.size, "offset": p.offset} for p in self.places],
            layers=[{"path": one.path, "id": one.id, "size": one.size} for one in self.layers],
            runs=b"".join(_RUN.pack(run.gpa, run.size, run.layer) for run in self.runs),
            checksums=b"".join(_CHECKSUM.pack(*pair) for pair in self.checksums),
        )


def places_of(memory: GuestMemory) -> tuple[Place, ...]:
    """Where the regions of `memory` are in a file, by address."""
    found: list[Place] = []
    offset = 0
    for slot in memory.slots:
        found.append(Place(slot.gpa, slot.region.size, offset))
        offset = align_up(offset + slot.region.size, CHUNK)
    return tuple(found)


def read_index(data: bytes) -> Index:
    """The index in `data`. Raises BadState for whatever could lead a reader astray."""
    state = parse(PART, FORM, data)
    places = tuple(Place(one.gpa, one.size, one.offset) for one in state.places)
    layers = tuple(Layer(str(one.path), bytes(one.id), one.size) for one in state.layers)
    _check_places(places, state.size)
    require(
        len(layers) < MOST_LAYERS, PART, "layers", len(layers), f"{MOST_LAYERS - 1} are possible"
    )
    for layer in layers:
        require(bool(layer.path) and "\0" not in layer.path, PART, "layer", layer.path, "no path")
        require(layer.size == state.size, PART, "layer size", layer.size, f"ours is {state.size}")
    runs = tuple(Run(*fields) for fields in _unpack(_RUN, state.runs, "runs"))
    _check_runs(runs, places, len(layers))
    pairs = _unpack(_CHECKSUM, state.checksums, "checksums")
    checksums = tuple((chunk, crc) for chunk, crc in pairs)
    chunks = -(-state.size // CHUNK)
    for (before, _), (chunk, _) in pairwise([(-1, 0), *checksums]):
        require(before < chunk < chunks, PART, "chunk", chunk, f"it follows {before} of {chunks}")
    return Index(state.size, places, layers, runs, checksums)


def _unpack(form: struct.Struct, data: bytes, what: str) -> Iterable[tuple[int, ...]]:
    require(not len(data) % form.size, PART, what, f"{len(data)} bytes", f"not of {form.size} each")
    return form.iter_unpack(data)


def _check_places(places: Sequence[Place], size: int) -> None:
    """All in the file, pages, by address, apart from each other."""
    gpa = offset = 0
    for place in places:
        at = f"{place.gpa:#x}"
        whole = not (place.gpa | place.size | place.offset) % PAGE and place.size > 0
        require(whole, PART, "place", at, f"{place.size} bytes at {place.offset} are not pages")
        require(place.gpa >= gpa, PART, "place", at, "it is not behind the one before")
        require(
            offset <= place.offset <= size - place.size, PART, "place", at, "it is not in the file"
        )
        gpa, offset = place.gpa + place.size, place.offset + place.size
        require(gpa < 1 << 64, PART, "place", at, "no such memory")


def _check_runs(runs: Iterable[Run], places: Sequence[Place], layers: int) -> None:
    """Each in one place, pages, by address, apart from each other, in a layer that there is."""
    rest = iter(places)
    place = next(rest, None)
    end = 0
    for run in runs:
        at = f"{run.gpa:#x}"
        whole = not (run.gpa | run.size) % PAGE and run.size > 0
        require(whole, PART, "run", at, f"{run.size} bytes are not pages")
        require(run.gpa >= end, PART, "run", at, "it is not behind the one before")
        require(run.layer <= layers, PART, "run", at, f"there is no layer {run.layer}")
        while place is not None and place.gpa + place.size <= run.gpa:
            place = next(rest, None)
        inside = place is not None and place.gpa <= run.gpa and run.end <= place.gpa + place.size
        require(inside, PART, "run", at, f"{run.size} bytes there are not in one place")
        end = run.end


def compose(
    own: Sequence[Range],
    forgotten: Sequence[Range],
    base: Sequence[Run],
    memory: Sequence[Range],
) -> tuple[Run, ...]:
    """The runs of a snapshot: `own` are in its file; the rest is as in `base`, one layer deeper.

    But nothing of `base` counts in `forgotten`, nor outside of `memory`. All by address, (gpa,
    size), disjoint.
    """
    found = [Run(gpa, size, 0) for gpa, size in common(own, memory)]
    for layer in sorted({run.layer for run in base}):
        ranges = [(run.gpa, run.size) for run in base if run.layer == layer]
        kept = common(without(ranges, forgotten), memory)
        found += [Run(gpa, size, layer + 1) for gpa, size in kept]
    return tuple(sorted(found, key=lambda run: run.gpa))
