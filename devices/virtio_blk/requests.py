"""Descriptor chain -> request, request -> what the disk does. Rings and threads are device.py's.

`read_request` and `finish` touch guest memory, under the lock; `perform` touches the disk, in a
thread or not. Between them a request is a copy: the guest can change its mind, but not ours.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from minivmm.devices.virtio_blk.disk import Disk
from minivmm.errors import DeviceBroken
from minivmm.spec.virtio_blk import (
    ID_SIZE,
    SECTOR,
    RequestHeader,
    RequestType,
    Segment,
    SegmentFlags,
    Status,
)
from minivmm.units import MIB
from minivmm.virtio.queue.queue import Chain

HEADER = struct.Struct("<I4xQ")
"""RequestHeader without its reserved part: construct would take a quarter of a request's time."""

MOST_BYTES = 32 * MIB
"""Data of one request; Linux asks for 1.25 MiB at once, and for 4 MiB since 6.14."""
MOST_SEGMENTS = 16
"""Ranges that one DISCARD may name; WRITE_ZEROES names one, as in QEMU."""
MOST_DISCARDED = 1 << 22
"""Sectors that a segment of DISCARD may have: 2 GiB."""
MOST_ZEROED = 1 << 17
"""Sectors of a WRITE_ZEROES: 64 MiB, which may have to be written."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What the user lets the device do beside reading and writing, and its serial number."""

    discard: bool
    write_zeroes: bool
    serial: bytes


@dataclass(slots=True)
class Request:
    """A request, and after `perform` its result."""

    chain: Chain
    type: int
    sector: int
    data: bytes
    """What the driver sent behind the header."""
    room: int
    """Bytes that the driver can take before the status byte."""
    status: Status = Status.OK
    reply: bytes = b""
    why: str = ""
    """What the host said when status is IOERR."""

    @property
    def size(self) -> int:
        """Bytes that have to be copied for it, or written if the file system cannot zero them."""
        match self.type:
            case RequestType.IN:
                return self.room + len(self.data)
            case RequestType.WRITE_ZEROES if len(self.data) == Segment.SIZE:
                return min(Segment.parse(self.data).num_sectors, MOST_ZEROED) * SECTOR
        return len(self.data)

    @property
    def writes(self) -> bool:
        """Does it change the disk?"""
        return self.type in (RequestType.OUT, RequestType.WRITE_ZEROES)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may have: ranges, sectors in each, and the flags that are known."""

    segments: int
    sectors: int
    flags: SegmentFlags


class Refused(Exception):
    """A request that is not done; the driver is told `status`."""

    def __init__(self, status: Status, why: str) -> None:
        super().__init__(why)
        self.status = status


def read_request(chain: Chain) -> Request:
    """The request in `chain`, whatever its framing, read once.

    Raises DeviceBroken if its header is cut short or there is no room for a status byte: then there
    is no way to tell the driver.
    """
    if chain.readable < RequestHeader.SIZE or not chain.writable:
        raise DeviceBroken(
            f"request has {chain.readable} readable and {chain.writable} writable bytes, needs"
            f" {RequestHeader.SIZE} and 1"
        )
    too_much = max(chain.readable - RequestHeader.SIZE, chain.writable - 1) > MOST_BYTES
    content = chain.read(RequestHeader.SIZE if too_much else None)
    kind, sector = HEADER.unpack_from(content)
    request = Request(chain, kind, sector, content[RequestHeader.SIZE :], chain.writable - 1)
    if too_much:
        request.status, request.why = Status.IOERR, "more data than a request may have"
    return request


def perform(request: Request, disk: Disk, can: Abilities) -> None:
    """Do it, or find out why not. Never raises OSError."""
    if request.status is not Status.OK:
        return
    try:
        request.reply = _perform(request, disk, can)
    except Refused as refused:
        request.status, request.why = refused.status, str(refused)
    except OSError as error:
        request.status, request.why = Status.IOERR, error.strerror or str(error)


def finish(request: Request) -> int:
    """Store reply and status; bytes written in one piece from the start (used.len)."""
    chain, reply = request.chain, request.reply
    status = bytes((request.status,))
    if len(reply) == request.room:
        chain.write(reply + status)
        return len(reply) + 1
    chain.write(reply)
    chain.write(status, request.room)
    return len(reply)


def _perform(request: Request, disk: Disk, can: Abilities) -> bytes:
    match request.type:
        case RequestType.IN:
            return disk.read(_place(request.sector, request.room, disk), request.room)
        case RequestType.OUT:
            _check_writable(disk)
            disk.write(_place(request.sector, len(request.data), disk), request.data)
        case RequestType.FLUSH:
            disk.flush()
        case RequestType.GET_ID:
            return can.serial.ljust(ID_SIZE, b"\0")[: request.room]
        case RequestType.DISCARD if can.discard:
            limits = Limits(MOST_SEGMENTS, MOST_DISCARDED, SegmentFlags(0))
            for offset, length, _ in _segments(request, disk, limits):
                disk.discard(offset, length)
        case RequestType.WRITE_ZEROES if can.write_zeroes:
            limits = Limits(1, MOST_ZEROED, SegmentFlags.UNMAP)
            for offset, length, flags in _segments(request, disk, limits):
                disk.write_zeroes(offset, length, unmap=bool(flags & SegmentFlags.UNMAP))
        case _:
            raise Refused(Status.UNSUPP, f"request type {request.type} is not offered")
    return b""


def _segments(request: Request, disk: Disk, limits: Limits) -> list[tuple[int, int, int]]:
    """(offset, length, flags) of all ranges, in bytes; no range is done unless all can be.

    What exceeds `limits` is refused (5.2.6.2).
    """
    _check_writable(disk)
    count, rest = divmod(len(request.data), Segment.SIZE)
    if rest or not 1 <= count <= limits.segments:
        raise Refused(Status.IOERR, f"{len(request.data)} bytes of segments")
    found: list[tuple[int, int, int]] = []
    for start in range(0, len(request.data), Segment.SIZE):
        segment = Segment.parse(request.data[start : start + Segment.SIZE])
        if segment.flags & ~int(limits.flags):
            raise Refused(Status.UNSUPP, f"flags {segment.flags:#x} of a segment")
        if segment.num_sectors > limits.sectors:
            raise Refused(Status.IOERR, f"a segment of {segment.num_sectors} sectors")
        length = segment.num_sectors * SECTOR
        found.append((_place(segment.sector, length, disk), length, segment.flags))
    return found


def _place(sector: int, length: int, disk: Disk) -> int:
    """Offset in bytes of `length` bytes at `sector`, if that is whole sectors of the disk."""
    offset = sector * SECTOR
    if length % SECTOR or offset + length > disk.size:
        raise Refused(Status.IOERR, f"{length} bytes at sector {sector} are not on the disk")
    return offset


def _check_writable(disk: Disk) -> None:
    if disk.readonly:
        raise Refused(Status.IOERR, "the disk is read-only")
