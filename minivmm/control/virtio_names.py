"""Names of virtio's status and feature bits, each with a few words on what it means.

The names are those of Linux' and QEMU's headers, as x-query-virtio-status gives them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import IntFlag

from minivmm.spec import virtio_balloon, virtio_blk, virtio_console, virtio_mem
from minivmm.spec.virtio import DeviceStatus, Feature

Bits = Mapping[int, str]
"""Bit number -> name and meaning."""


def _named(prefix: str, meanings: Mapping[IntFlag, str]) -> Bits:
    """Bits that the specification has as masks, under the names of the C headers."""
    return {
        mask.bit_length() - 1: f"{prefix}_{mask.name}: {meaning}"
        for mask, meaning in meanings.items()
    }


STATUSES: Bits = _named(
    "VIRTIO_CONFIG_S",
    {
        DeviceStatus.ACKNOWLEDGE: "the guest has seen the device",
        DeviceStatus.DRIVER: "the guest has a driver for it",
        DeviceStatus.FEATURES_OK: "driver and device agree on features",
        DeviceStatus.DRIVER_OK: "the driver is up",
        DeviceStatus.NEEDS_RESET: "the device is broken until it is reset",
        DeviceStatus.FAILED: "the driver has given up",
    },
)

TRANSPORT: Bits = {
    Feature.INDIRECT_DESC: "VIRTIO_RING_F_INDIRECT_DESC: descriptors may lie in tables",
    Feature.EVENT_IDX: "VIRTIO_RING_F_EVENT_IDX: both sides say from when on to notify them",
    Feature.VERSION_1: "VIRTIO_F_VERSION_1: virtio 1.0 or later",
    Feature.ACCESS_PLATFORM: "VIRTIO_F_IOMMU_PLATFORM: access to memory as the platform wants it",
    Feature.RING_PACKED: "VIRTIO_F_RING_PACKED: packed rings",
    Feature.IN_ORDER: "VIRTIO_F_IN_ORDER: buffers are used in the order they came in",
    Feature.ORDER_PLATFORM: "VIRTIO_F_ORDER_PLATFORM: barriers as for real devices",
    Feature.NOTIFICATION_DATA: "VIRTIO_F_NOTIFICATION_DATA: doorbells tell the ring's position",
    Feature.NOTIF_CONFIG_DATA: "VIRTIO_F_NOTIF_CONFIG_DATA: doorbells tell what the device chose",
    Feature.RING_RESET: "VIRTIO_F_RING_RESET: queues can be reset one by one",
}

_MEM: Bits = _named(
    "VIRTIO_MEM_F",
    {
        virtio_mem.Feature.ACPI_PXM: "the node is told as a proximity domain",
        virtio_mem.Feature.UNPLUGGED_INACCESSIBLE: "unplugged memory is never read",
        virtio_mem.Feature.PERSISTENT_SUSPEND: "memory outlives suspend",
    },
)
_BLK: Bits = _named(
    "VIRTIO_BLK_F",
    {
        virtio_blk.Feature.SIZE_MAX: "segments have a largest size",
        virtio_blk.Feature.SEG_MAX: "requests have a most of segments",
        virtio_blk.Feature.RO: "read-only",
        virtio_blk.Feature.BLK_SIZE: "the block size is told",
        virtio_blk.Feature.FLUSH: "can flush",
        virtio_blk.Feature.CONFIG_WCE: "the cache can be switched",
        virtio_blk.Feature.DISCARD: "can discard",
        virtio_blk.Feature.WRITE_ZEROES: "can write zeroes",
    },
)
_BALLOON: Bits = _named(
    "VIRTIO_BALLOON_F",
    {
        virtio_balloon.Feature.MUST_TELL_HOST: "pages are taken back only after telling",
        virtio_balloon.Feature.STATS_VQ: "the guest tells statistics",
        virtio_balloon.Feature.DEFLATE_ON_OOM: "deflates when the guest is out of memory",
        virtio_balloon.Feature.FREE_PAGE_HINT: "the guest hints at free pages",
        virtio_balloon.Feature.PAGE_POISON: "free pages have a pattern",
        virtio_balloon.Feature.PAGE_REPORTING: "free pages are reported",
    },
)
_CONSOLE: Bits = {
    virtio_console.Feature.SIZE: "VIRTIO_CONSOLE_F_SIZE: the terminal's size is told",
    virtio_console.Feature.MULTIPORT: "VIRTIO_CONSOLE_F_MULTIPORT: several ports",
    virtio_console.Feature.EMERG_WRITE: "VIRTIO_CONSOLE_F_EMERG_WRITE: output before the driver",
}

BY_DEVICE: Mapping[str, Bits] = {
    "virtio-mem": _MEM,
    "virtio-blk": _BLK,
    "virtio-balloon": _BALLOON,
    "virtio-console": _CONSOLE,
}
"""Features of device types, by DeviceTraits.name; a type that is not here has none."""


def decode(value: int, bits: Bits) -> tuple[list[str], int]:
    """What the set bits of `value` are called, and those that have no name, still as bits."""
    named = sum(1 << bit for bit in _set_bits(value) if bit in bits)
    return [bits[bit] for bit in _set_bits(named)], value & ~named


def _set_bits(value: int) -> Iterator[int]:
    return (bit for bit in range(value.bit_length()) if value >> bit & 1)
