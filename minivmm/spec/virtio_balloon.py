"""Wire format of the traditional memory balloon (virtio-spec 5.5): queues, features, statistics."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from minivmm.spec.record import Record, record, u16, u32, u64

DEVICE_ID = 5

PAGE_SHIFT = 12
"""Pages of the balloon have 4 KiB, whatever the guest's own have (5.5.6)."""


class Queue(IntEnum):
    """Indices of the queues; the last three exist with their features only (5.5.2)."""

    INFLATE = 0
    DEFLATE = 1
    STATS = 2
    FREE_PAGE = 3
    REPORTING = 4


class Feature(IntFlag):
    """Feature bits (5.5.3)."""

    MUST_TELL_HOST = 1 << 0
    STATS_VQ = 1 << 1
    DEFLATE_ON_OOM = 1 << 2
    FREE_PAGE_HINT = 1 << 3
    PAGE_POISON = 1 << 4
    PAGE_REPORTING = 1 << 5


@record
class BalloonConfig(Record):
    """Device configuration (5.5.4); the driver writes `actual` and `poison_val`."""

    num_pages: int = u32()
    """Pages that the device wants in the balloon."""
    actual: int = u32()
    """Pages that the driver has put into it."""
    free_page_hint_cmd_id: int = u32()
    poison_val: int = u32()


class StatTag(IntEnum):
    """What a statistic counts (5.5.6.4), in bytes where it is memory."""

    SWAP_IN = 0
    SWAP_OUT = 1
    MAJFLT = 2
    MINFLT = 3
    MEMFREE = 4
    MEMTOT = 5
    AVAIL = 6
    CACHES = 7
    HTLB_PGALLOC = 8
    HTLB_PGFAIL = 9


@record
class Stat(Record):
    """One statistic, 10 bytes without padding (5.5.6.3)."""

    tag: int = u16()
    value: int = u64()
