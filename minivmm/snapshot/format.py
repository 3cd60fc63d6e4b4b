"""The file `machine` of a snapshot: what it holds, in which form, and how it is trusted.

    magic, version | who made it | description, JSON | sections, each with a CRC-32 | SHA-256 of all

It is small and is always read and checked whole, so that what is damaged, cut short, foreign or of
a later version is refused before anything is built from it. The SHA-256 is the snapshot's id, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import construct
from construct import (
    Bytes,
    GreedyBytes,
    Int16ul,
    Int32ul,
    PascalString,
    Prefixed,
    PrefixedArray,
    Struct,
)

from minivmm.errors import BadState, HostError
from minivmm.saved import Section, build
from minivmm.units import MIB
from minivmm.version import __version__

MAGIC = b"\x89minivmm\r\n\x1a\n"
"""As PNG's: it shows what a transfer as text does to a file."""

FORMAT = 1
"""Version of the form below."""

ID_SIZE = hashlib.sha256().digest_size

MACHINE_FILE = "machine"
RAM_FILE = "ram"
"""Names in a snapshot's directory."""

MOST_BYTES = 256 * MIB
"""Of a machine file: an index of 16 TiB of guest memory fits."""

_HEAD = Struct("magic" / Bytes(len(MAGIC)), "format" / Int16ul)
_BODY = Struct(
    "made_by" / PascalString(Int16ul, "utf8"),
    "description" / Prefixed(Int32ul, GreedyBytes),
    "sections"
    / PrefixedArray(
        Int16ul,
        Struct(
            "name" / PascalString(Int16ul, "utf8"),
            "version" / Int16ul,
            "crc32" / Int32ul,
            "data" / Prefixed(Int32ul, GreedyBytes),
        ),
    ),
)
_FILE = Struct(
    "head" / _HEAD,
    "body" / _BODY,
    "end" / construct.Tell,
    "id" / Bytes(ID_SIZE),
    construct.Terminated,
)


@dataclass(frozen=True)
class Contents:
    """What a machine file holds."""

    id: bytes
    """Of the snapshot: ID_SIZE bytes that no other has."""
    made_by: str
    """The version of minivmm that wrote it."""
    description: dict[str, object]
    """minivmm.snapshot.machine.describe of the machine that was saved."""
    sections: tuple[Section, ...]

    def section(self, name: str) -> Section:
        """The section of that name. Raises BadState if there is none."""
        found = next((one for one in self.sections if one.name == name), None)
        if found is None:
            raise BadState("snapshot", "section", name, "it is missing")
        return found


def pack(description: Mapping[str, object], sections: Iterable[Section]) -> bytes:
    """The machine file for these; its last ID_SIZE bytes are the snapshot's id."""
    head = build(_HEAD, magic=MAGIC, format=FORMAT)
    body = build(
        _BODY,
        made_by=__version__,
        description=json.dumps(description, sort_keys=True).encode(),
        sections=[
            {
                "name": section.name,
                "version": section.version,
                "crc32": zlib.crc32(section.data),
                "data": section.data,
            }
            for section in sections
        ],
    )
    return head + body + hashlib.sha256(head + body).digest()


def unpack(data: bytes, name: str = "snapshot") -> Contents:
    """What the machine file `data` holds; `name` is for complaints. Raises BadState."""
    if data[: len(MAGIC)] != MAGIC:
        found = data[: len(MAGIC)].hex() or "nothing"
        raise BadState(name, "first bytes", found, "this is no snapshot of minivmm")
    if len(data) < _HEAD.sizeof() + ID_SIZE:
        raise BadState(name, "length", len(data), "it has been cut short")
    version = _HEAD.parse(data).format
    if version != FORMAT:
        why = f"this minivmm ({__version__}) reads format {FORMAT}: use the one that wrote it"
        raise BadState(name, "format", version, why)
    identifier = hashlib.sha256(memoryview(data)[:-ID_SIZE]).digest()
    if identifier != data[-ID_SIZE:]:
        raise BadState(name, "checksum", data[-ID_SIZE:].hex()[:16], _what_is_damaged(data))
    try:
        file = _FILE.parse(data)
        description = json.loads(file.body.description)
    except (construct.ConstructError, ValueError, RecursionError) as error:
        why = " ".join(str(error).split())
        raise BadState(name, "length", len(data), f"it has another form ({why})") from error
    if not isinstance(description, dict):
        raise BadState(name, "description", type(description).__name__, "it is no JSON object")
    sections = tuple(
        Section(str(one.name), int(one.version), bytes(one.data)) for one in file.body.sections
    )
    return Contents(identifier, str(file.body.made_by), description, sections)


def read(directory: Path) -> Contents:
    """What the snapshot in `directory` holds but memory. Raises BadState, HostError."""
    path = directory / MACHINE_FILE
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MOST_BYTES:
                raise BadState(str(path), "length", size, "this is no snapshot of minivmm")
            data = file.read(MOST_BYTES)
    except OSError as error:
        raise HostError(
            f"{directory} cannot be read as a snapshot ({error.strerror}: {path.name}): give the"
            " directory that `minivmm snapshot` made"
        ) from error
    return unpack(data, str(path))


def _what_is_damaged(data: bytes) -> str:
    """As far as the sections' own checksums tell."""
    try:
        sections = _FILE.parse(data).body.sections
    except (construct.ConstructError, ValueError):
        return "it is damaged, or cut short"
    wrong = [one.name for one in sections if zlib.crc32(one.data) != one.crc32]
    return f"it is damaged, in {', '.join(wrong)}" if wrong else "it is damaged"
