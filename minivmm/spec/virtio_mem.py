"""Wire truth of the memory device: virtio-spec 1.4, "Memory Device" (5.15). No behaviour."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from minivmm.spec.record import Record, pad, record, u16, u64

DEVICE_ID = 24
"""Virtio device id of the memory device (5.15.1)."""


class Feature(IntFlag):
    """Device-type feature bits (5.15.3), as masks."""

    ACPI_PXM = 1 << 0
    """node_id is valid, and is an ACPI proximity domain."""
    UNPLUGGED_INACCESSIBLE = 1 << 1
    """The driver promises not even to read unplugged memory."""
    PERSISTENT_SUSPEND = 1 << 2
    """Plugged blocks survive a suspend of the guest to RAM (since 1.4)."""


class RequestType(IntEnum):
    """What the driver asks for (5.15.6)."""

    PLUG = 0
    UNPLUG = 1
    UNPLUG_ALL = 2
    STATE = 3


class ResponseType(IntEnum):
    """What the device answers (5.15.6)."""

    ACK = 0
    NACK = 1
    """Not now by the device's own rule: read the configuration again (plug beyond the target)."""
    BUSY = 2
    """Not now for a passing reason: try again later. Linux waits 50 s to 300 s."""
    ERROR = 3
    """The request is wrong. Linux never sends another one afterwards."""


class BlockState(IntEnum):
    """`state` of the answer to STATE (5.15.6.5)."""

    PLUGGED = 0
    UNPLUGGED = 1
    MIXED = 2


@record
class MemConfig(Record):
    """struct virtio_mem_config (5.15.4): 56 bytes, all read-only for the driver."""

    block_size: int = u64()
    node_id: int = u16()
    padding: bytes = pad(6)
    addr: int = u64()
    region_size: int = u64()
    usable_region_size: int = u64()
    plugged_size: int = u64()
    requested_size: int = u64()


@record
class MemRequest(Record):
    """struct virtio_mem_req (5.15.6): 24 bytes. UNPLUG_ALL uses only `type`."""

    type: int = u16()
    padding: bytes = pad(6)
    addr: int = u64()
    """Guest physical address of the first block."""
    nb_blocks: int = u16()
    payload_padding: bytes = pad(6)


@record
class MemResponse(Record):
    """struct virtio_mem_resp (5.15.6): 10 bytes."""

    type: int = u16()
    padding: bytes = pad(6)
    state: int = u16()
    """A BlockState; only the answer ACK to STATE gives it a meaning."""
