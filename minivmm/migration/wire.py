"""The bytes of a migration stream: its preamble, its frames, what they carry. No sockets here.

Every frame has a number and a checksum, so that what is damaged, lost or doubled is noticed at the
frame it happened to, and nothing in a frame is looked at before that.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import construct

from minivmm.errors import MigrationError
from minivmm.memory.region import PAGE_SIZE
from minivmm.saved import Section
from minivmm.spec.record import Record, raw, record, u16, u32, u64
from minivmm.units import MIB

MAGIC = b"minivmm-migrate\n"
VERSION = 1
"""Of everything in this file."""

SOURCE, TARGET = 1, 2
"""Roles in a preamble: who sent it."""


@record
class Preamble(Record):
    """What each side says first."""

    magic: bytes = raw(16, MAGIC)
    version: int = u32(VERSION)
    role: int = u32()


class Kind(IntEnum):
    """What a frame is."""

    DESCRIPTION = 1
    """JSON: what must be equal on both sides (minivmm.snapshot.describe)."""
    SECTION = 2
    """The state of one part."""
    PLUGGED = 3
    """JSON: the sections so far were those of memory devices; "plugged" is bytes by device."""
    PAGES = 4
    """Guest memory."""
    END = 5
    """JSON: the sections since PLUGGED were the whole machine; "plugged" as there."""
    RUN = 6
    """Empty: the machine is the target's from now on."""
    READY = 16
    """Empty, from the target: go on."""
    LOADED = 17
    """Empty, from the target: the machine is complete here, and waits for RUN."""
    RUNNING = 18
    """Empty, from the target: RUN has come."""
    FAILED = 19
    """UTF-8, from either side: one line on why it is all over."""


PAGES_DATA = MIB
"""Most bytes of guest memory in one PAGES frame."""

RUNS_MAX = 4096
"""Most runs in one PAGES frame."""

LIMITS = dict.fromkeys(Kind, 0) | {
    Kind.DESCRIPTION: 4 * MIB,
    Kind.SECTION: 64 * MIB,
    Kind.PLUGGED: MIB,
    Kind.PAGES: 4 + RUNS_MAX * 16 + PAGES_DATA,
    Kind.END: MIB,
    Kind.FAILED: 4096,
}
"""Most bytes that a frame of each kind carries."""

DEFLATED = 1
"""Flag: what the frame carries is a zlib stream of it."""


@record
class FrameHeader(Record):
    """In front of every frame; `length` bytes follow. Frames of a side are numbered from 0."""

    kind: int = u16()
    flags: int = u16()
    length: int = u32()
    number: int = u32()
    checksum: int = u32()
    """CRC-32 of the header up to here and what follows it."""


_COVERED = FrameHeader.OFFSETS["checksum"]


class Frame(NamedTuple):
    """A frame that was received whole and undamaged."""

    kind: Kind
    payload: bytes


def encode(kind: Kind, payload: bytes, number: int, *, level: int = 0) -> bytes:
    """A frame as it goes on the wire; zlib's `level` above 0 deflates it if that makes it less."""
    flags = 0
    if level:
        deflated = zlib.compress(payload, level)
        if len(deflated) < len(payload):
            payload, flags = deflated, DEFLATED
    header = FrameHeader(kind, flags, len(payload), number & 0xFFFF_FFFF, 0).build()[:_COVERED]
    checksum = zlib.crc32(payload, zlib.crc32(header))
    return b"".join((header, checksum.to_bytes(4, "little"), payload))


def read_header(data: bytes, number: int) -> FrameHeader:
    """The header of frame `number`, with a kind and a length that can be. Raises MigrationError."""
    header = FrameHeader.parse(data)
    if header.kind not in LIMITS:
        raise MigrationError(f"migration stream damaged: frame {number} has kind {header.kind}")
    if header.number != number & 0xFFFF_FFFF:
        raise MigrationError(
            f"migration stream damaged: frame {header.number} in place of {number}"
        )
    kind = Kind(header.kind)
    if header.length > LIMITS[kind]:
        raise MigrationError(
            f"migration stream damaged: frame {number} ({kind.name}) of {header.length} bytes,"
            f" {LIMITS[kind]} are allowed"
        )
    return header


def decode(header: FrameHeader, data: bytes, payload: bytes) -> Frame:
    """The frame of `header`, whose bytes are `data`, and what follows. Raises MigrationError."""
    kind, number = Kind(header.kind), header.number
    if zlib.crc32(payload, zlib.crc32(data[:_COVERED])) != header.checksum:
        raise MigrationError(f"migration stream damaged: checksum of frame {number} ({kind.name})")
    if header.flags == DEFLATED:
        inflater = zlib.decompressobj()
        try:
            payload = inflater.decompress(payload, LIMITS[kind] + 1)
        except zlib.error as error:
            raise MigrationError(
                f"migration stream: frame {number} is not zlib ({error})"
            ) from None
        if len(payload) > LIMITS[kind] or not inflater.eof or inflater.unused_data:
            raise MigrationError(f"migration stream: frame {number} does not inflate")
    elif header.flags:
        raise MigrationError(
            f"migration stream: frame {number} has unknown flags {header.flags:#x}"
        )
    return Frame(kind, payload)


# -- what frames carry -----------------------------------------------------------------------------

_SECTION = construct.Struct(
    "name" / construct.PascalString(construct.Int8ul, "utf8"),
    "version" / construct.Int32ul,
    "data" / construct.GreedyBytes,
)


def build_section(section: Section) -> bytes:
    """What a SECTION carries."""
    values = {"name": section.name, "version": section.version, "data": section.data}
    return bytes(_SECTION.build(values))


def parse_section(payload: bytes) -> Section:
    """The section in it. Raises MigrationError."""
    try:
        found = _SECTION.parse(payload)
    except (construct.ConstructError, UnicodeDecodeError):
        raise MigrationError("migration stream: a section without name and version") from None
    if not found.name.isprintable():
        raise MigrationError(f"migration stream: a section is named {found.name!r}")
    return Section(found.name, found.version, found.data)


def build_json(value: object) -> bytes:
    """What DESCRIPTION, PLUGGED and END carry."""
    return json.dumps(value, separators=(",", ":")).encode()


def parse_json(payload: bytes, what: str) -> dict[str, Any]:
    """The JSON object in it. Raises MigrationError."""
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError):
        raise MigrationError(f"migration stream: {what} is not JSON") from None
    if not isinstance(value, dict):
        raise MigrationError(f"migration stream: {what} is no JSON object")
    return value


@record
class RunRecord(Record):
    """Neighbouring pages of a PAGES frame; the data of those with `data` 1 follows all runs."""

    gpa: int = u64()
    pages: int = u32()
    data: int = u32()
    """1: in the frame; 0: they are all zeroes, and there is nothing in the frame."""


_RUN = struct.Struct("<QII")
"""RunRecord, for the hot path; a test proves that both agree."""

_COUNT = struct.Struct("<I")


class Run(NamedTuple):
    """`size` bytes of guest memory at `gpa`; `data` is None if they are zeroes."""

    gpa: int
    size: int
    data: bytes | memoryview | None


def build_pages(runs: Sequence[Run]) -> bytes:
    """What a PAGES frame carries; RUNS_MAX and PAGES_DATA are kept by the caller."""
    parts: list[bytes | memoryview] = [_COUNT.pack(len(runs))]
    parts += [_RUN.pack(gpa, size // PAGE_SIZE, data is not None) for gpa, size, data in runs]
    parts += [run.data for run in runs if run.data is not None]
    return b"".join(parts)


def parse_pages(payload: bytes) -> list[Run]:
    """The runs in it, each of one page at least and with an aligned address below 2^64.

    Raises MigrationError.
    """
    whole = memoryview(payload)
    count = _COUNT.unpack_from(whole)[0] if len(whole) >= _COUNT.size else RUNS_MAX + 1
    at = _COUNT.size + count * _RUN.size
    if count > RUNS_MAX or at > len(whole):
        raise MigrationError(f"migration stream: pages with {len(whole)} bytes and {count} runs")
    runs: list[Run] = []
    for gpa, pages, data in _RUN.iter_unpack(whole[_COUNT.size : at]):
        size = pages * PAGE_SIZE
        if gpa % PAGE_SIZE or not pages or data > 1:
            raise MigrationError(f"migration stream: no run is {pages} pages at {gpa:#x}")
        if data and at + size > len(whole):
            raise MigrationError(f"migration stream: the data of pages at {gpa:#x} is cut short")
        runs.append(Run(gpa, size, whole[at : at + size] if data else None))
        at += size if data else 0
    if at != len(whole):
        raise MigrationError(f"migration stream: {len(whole) - at} bytes behind the last page")
    return runs
