"""Virtio over PCI, the modern interface (virtio-spec 4.1)."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from minivmm.spec.pci import CapabilityId
from minivmm.spec.record import Record, pad, raw, record, u8, u16, u32, u64

VENDOR_ID = 0x1AF4
DEVICE_ID_BASE = 0x1040
"""PCI device id of virtio device type 0; add the type (virtio-spec 4.1.2)."""
SUBSYSTEM_VENDOR_ID = 0x1AF4
SUBSYSTEM_ID = 0x1100
REVISION = 1
"""Non-transitional devices have at least revision 1 (PCI-D-3)."""

NO_VECTOR = 0xFFFF
"""MSI-X vector field of an event that is not mapped (virtio-spec 4.1.5.1.2)."""


class CapabilityType(IntEnum):
    """cfg_type of virtio's vendor capabilities (virtio-spec 4.1.4)."""

    COMMON = 1
    NOTIFY = 2
    ISR = 3
    DEVICE = 4
    PCI = 5


@record
class VirtioCapability(Record):
    """struct virtio_pci_cap."""

    id: int = u8(CapabilityId.VENDOR)
    next: int = u8()
    length: int = u8(16)
    type: int = u8()
    bar: int = u8()
    instance: int = u8()
    padding: bytes = pad(2)
    offset: int = u32()
    size: int = u32()


@record
class NotifyCapability(Record):
    """struct virtio_pci_notify_cap; queue q rings at offset + queue_notify_off(q) * multiplier."""

    id: int = u8(CapabilityId.VENDOR)
    next: int = u8()
    length: int = u8(20)
    type: int = u8(CapabilityType.NOTIFY)
    bar: int = u8()
    instance: int = u8()
    padding: bytes = pad(2)
    offset: int = u32()
    size: int = u32()
    multiplier: int = u32()


@record
class WindowCapability(Record):
    """struct virtio_pci_cfg_cap: bar, offset, size and data are the driver's to write."""

    id: int = u8(CapabilityId.VENDOR)
    next: int = u8()
    length: int = u8(20)
    type: int = u8(CapabilityType.PCI)
    bar: int = u8()
    instance: int = u8()
    padding: bytes = pad(2)
    offset: int = u32()
    size: int = u32()
    data: bytes = raw(4)


@record
class CommonConfig(Record):
    """struct virtio_pci_common_cfg (virtio-spec 4.1.4.3), 64 bytes in its longest form."""

    device_feature_select: int = u32()
    device_feature: int = u32()
    driver_feature_select: int = u32()
    driver_feature: int = u32()
    config_msix_vector: int = u16(NO_VECTOR)
    num_queues: int = u16()
    device_status: int = u8()
    config_generation: int = u8()
    queue_select: int = u16()
    queue_size: int = u16()
    queue_msix_vector: int = u16(NO_VECTOR)
    queue_enable: int = u16()
    queue_notify_off: int = u16()
    queue_desc: int = u64()
    queue_driver: int = u64()
    queue_device: int = u64()
    queue_notif_config_data: int = u16()
    queue_reset: int = u16()
    admin_queue_index: int = u16()
    admin_queue_num: int = u16()


class Isr(IntFlag):
    """ISR status byte (virtio-spec 4.1.4.5)."""

    QUEUE = 1
    CONFIG = 2
