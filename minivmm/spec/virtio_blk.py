"""Wire format of the block device (virtio-spec 5.2): features, configuration, requests."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from minivmm.spec.record import Record, pad, record, u8, u16, u32, u64

DEVICE_ID = 2

SECTOR = 512
"""Bytes in a sector, the unit of capacity and positions (5.2.4)."""
ID_SIZE = 20
"""Bytes of the answer to GET_ID (5.2.6)."""


class Feature(IntFlag):
    """Feature bits that we know (5.2.3)."""

    SIZE_MAX = 1 << 1
    SEG_MAX = 1 << 2
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    FLUSH = 1 << 9
    CONFIG_WCE = 1 << 11
    DISCARD = 1 << 13
    WRITE_ZEROES = 1 << 14


@record
class BlkConfig(Record):
    """Device configuration up to write zeroes (5.2.4); a field has a meaning with its feature."""

    capacity: int = u64()
    """Sectors."""
    size_max: int = u32()
    seg_max: int = u32()
    cylinders: int = u16()
    heads: int = u8()
    sectors: int = u8()
    blk_size: int = u32()
    physical_block_exp: int = u8()
    alignment_offset: int = u8()
    min_io_size: int = u16()
    opt_io_size: int = u32()
    writeback: int = u8()
    unused0: int = u8()
    num_queues: int = u16()
    max_discard_sectors: int = u32()
    max_discard_seg: int = u32()
    discard_sector_alignment: int = u32()
    max_write_zeroes_sectors: int = u32()
    max_write_zeroes_seg: int = u32()
    write_zeroes_may_unmap: int = u8()
    unused1: bytes = pad(3)


class RequestType(IntEnum):
    """What a request wants (5.2.6)."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    DISCARD = 11
    WRITE_ZEROES = 13


@record
class RequestHeader(Record):
    """How a request begins; data and a status byte of the device follow."""

    type: int = u32()
    reserved: int = u32()
    sector: int = u64()


@record
class Segment(Record):
    """A range of sectors: the data of DISCARD and WRITE_ZEROES."""

    sector: int = u64()
    num_sectors: int = u32()
    flags: int = u32()


class SegmentFlags(IntFlag):
    """Flags of a segment; the others are reserved."""

    UNMAP = 1


class Status(IntEnum):
    """How a request went."""

    OK = 0
    IOERR = 1
    UNSUPP = 2
