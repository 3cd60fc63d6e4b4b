"""Virtio itself: status, features, virtqueues of both formats (virtio-spec 2 and 6)."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from minivmm.spec.record import Record, record, u16, u32, u64


class DeviceStatus(IntFlag):
    """Device status field (virtio-spec 2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128


class Feature(IntEnum):
    """Bit numbers of the reserved features that we know (virtio-spec 6)."""

    INDIRECT_DESC = 28
    EVENT_IDX = 29
    VERSION_1 = 32
    ACCESS_PLATFORM = 33
    RING_PACKED = 34
    IN_ORDER = 35
    ORDER_PLATFORM = 36
    NOTIFICATION_DATA = 38
    NOTIF_CONFIG_DATA = 39
    RING_RESET = 40

    @property
    def mask(self) -> int:
        """The feature as a bit set with only this bit."""
        return 1 << self.value


MAX_QUEUE_SIZE = 32768
"""Largest queue, in descriptors (virtio-spec 2.7, 2.8)."""
MAX_CHAIN_BYTES = 1 << 32
"""Largest sum of buffer lengths in one chain (virtio-spec 2.7.5.1)."""


@record
class Descriptor(Record):
    """Split descriptor (virtio-spec 2.7.5)."""

    addr: int = u64()
    len: int = u32()
    flags: int = u16()
    next: int = u16()


class DescriptorFlags(IntFlag):
    """Flags of a split descriptor."""

    NEXT = 1
    WRITE = 2
    INDIRECT = 4


@record
class RingHeader(Record):
    """What the available and the used ring begin with (virtio-spec 2.7.6, 2.7.8)."""

    flags: int = u16()
    idx: int = u16()


class AvailFlags(IntFlag):
    """Flags of the available ring."""

    NO_INTERRUPT = 1


@record
class UsedElement(Record):
    """Entry of the used ring: head of the chain, bytes written (virtio-spec 2.7.8)."""

    id: int = u32()
    len: int = u32()


DESCRIPTOR_ALIGNMENT = 16
AVAIL_ALIGNMENT = 2
USED_ALIGNMENT = 4


def descriptor_table_size(queue_size: int) -> int:
    """Bytes of the descriptor table of a queue with `queue_size` descriptors."""
    return Descriptor.SIZE * queue_size


def avail_ring_size(queue_size: int) -> int:
    """Bytes of the available ring, used_event included (it is there if negotiated or not)."""
    return RingHeader.SIZE + 2 * queue_size + 2


def used_ring_size(queue_size: int) -> int:
    """Bytes of the used ring, avail_event included."""
    return RingHeader.SIZE + UsedElement.SIZE * queue_size + 2


@record
class PackedDescriptor(Record):
    """Descriptor of a packed ring; its flags are DescriptorFlags and PackedFlags (2.8.13)."""

    addr: int = u64()
    len: int = u32()
    id: int = u16()
    flags: int = u16()


class PackedFlags(IntFlag):
    """Flags that only packed descriptors have; they are read by wrap counters (2.8.1)."""

    AVAIL = 1 << 7
    USED = 1 << 15


@record
class EventSuppression(Record):
    """Event suppression structure of a packed ring: a position, and what it is for (2.8.14)."""

    position: int = u16()
    """Descriptor in bits 14:0, wrap counter in bit 15."""
    flags: int = u16()


class EventFlags(IntEnum):
    """Flags of an event suppression structure, bits 1:0 (virtio-spec 2.8.10); 3 is reserved."""

    ENABLE = 0
    DISABLE = 1
    DESCRIPTOR = 2


EVENT_FLAGS_MASK = 3
WRAP_COUNTER = 1 << 15
"""The wrap counter in positions of a packed ring."""
PACKED_RING_ALIGNMENT = 16
EVENT_ALIGNMENT = 4


def packed_ring_size(queue_size: int) -> int:
    """Bytes of a packed ring of `queue_size` descriptors."""
    return PackedDescriptor.SIZE * queue_size
