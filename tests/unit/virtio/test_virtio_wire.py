"""Structures have the sizes that the specification gives; hot-path overlays agree with them."""

import struct

import pytest

from minivmm.spec import pci, virtio, virtio_pci
from minivmm.spec.record import Record
from minivmm.virtio.queue import packed, split


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (pci.Header, 64),
        (pci.MsixCapability, 12),
        (pci.MsixEntry, 16),
        (virtio.Descriptor, 16),
        (virtio.UsedElement, 8),
        (virtio.RingHeader, 4),
        (virtio.PackedDescriptor, 16),
        (virtio.EventSuppression, 4),
        (virtio_pci.VirtioCapability, 16),
        (virtio_pci.NotifyCapability, 20),
        (virtio_pci.WindowCapability, 20),
        (virtio_pci.CommonConfig, 64),
    ],
)
def test_structure_sizes(kind: type[Record], size: int) -> None:
    assert size == kind.SIZE


def test_common_configuration_offsets() -> None:
    offsets = virtio_pci.CommonConfig.OFFSETS
    assert offsets["device_status"] == 0x14
    assert offsets["queue_desc"] == 0x20
    assert offsets["queue_reset"] == 0x3A
    assert offsets["admin_queue_num"] == 0x3E


@pytest.mark.parametrize(
    ("overlay", "kind", "values"),
    [
        (split.DESCRIPTOR, virtio.Descriptor, (0x1122334455667788, 0x99AABBCC, 0xDDEE, 0xFF01)),
        (split.USED_ELEMENT, virtio.UsedElement, (0x01020304, 0xA0B0C0D0)),
        (packed.DESCRIPTOR, virtio.PackedDescriptor, (0x1122334455667788, 0x99AABBCC, 1, 0xFF01)),
    ],
)
def test_overlay_and_record_agree_byte_for_byte(
    overlay: struct.Struct, kind: type[Record], values: tuple[int, ...]
) -> None:
    record = kind(*values)
    assert overlay.size == kind.SIZE
    assert overlay.pack(*values) == record.build()
    parsed = kind.parse(overlay.pack(*values))
    assert tuple(getattr(parsed, name) for name in kind.OFFSETS) == values


def test_used_part_of_a_packed_descriptor_is_where_the_overlay_puts_it() -> None:
    offset = virtio.PackedDescriptor.OFFSETS["len"]
    data = bytearray(virtio.PackedDescriptor.SIZE)
    packed.USED.pack_into(data, offset, 0xA0B0C0D0, 0x1234)
    assert bytes(data) == virtio.PackedDescriptor(0, 0xA0B0C0D0, 0x1234, 0).build()


@pytest.mark.parametrize("size", [1, 2, 128, 32768])
def test_ring_sizes(size: int) -> None:
    assert virtio.descriptor_table_size(size) == 16 * size
    assert virtio.avail_ring_size(size) == 6 + 2 * size
    assert virtio.used_ring_size(size) == 6 + 8 * size
    assert virtio.packed_ring_size(size) == 16 * size
