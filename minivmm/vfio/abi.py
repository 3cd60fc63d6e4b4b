"""Structures and constants of <linux/vfio.h> and <linux/iommufd.h>; requests are in ioctl.py.

Only what minivmm uses, in the headers' order and with their field names.
"""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import Structure, c_int32, c_uint16, c_uint32, c_uint64, sizeof
from enum import IntEnum, IntFlag

API_VERSION = 0
TYPE1V2_IOMMU = 3

# --- group --------------------------------------------------------------------------------------

GROUP_VIABLE = 1 << 0
"""Every device of the group is bound to vfio-pci or to nothing."""


class GroupStatus(Structure):
    """struct vfio_group_status."""

    _fields_ = (("argsz", c_uint32), ("flags", c_uint32))


# --- capabilities behind an answer --------------------------------------------------------------


class CapHeader(Structure):
    """struct vfio_info_cap_header; `next` counts from the start of the answer, 0 ends the chain."""

    _fields_ = (("id", c_uint16), ("version", c_uint16), ("next", c_uint32))


def capabilities(answer: bytes, start: int) -> Iterator[tuple[int, int]]:
    """(id, offset) of each capability in `answer` whose chain begins at `start` (0: none)."""
    at = start
    while at and at + sizeof(CapHeader) <= len(answer):
        header = CapHeader.from_buffer_copy(answer, at)
        yield int(header.id), at
        if header.next <= at:  # the kernel's chains go forward
            return
        at = int(header.next)


# --- device -------------------------------------------------------------------------------------


class DeviceFlags(IntFlag):
    """vfio_device_info.flags (VFIO_DEVICE_FLAGS_*)."""

    RESET = 1 << 0
    PCI = 1 << 1


class DeviceInfo(Structure):
    """struct vfio_device_info."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("num_regions", c_uint32),
        ("num_irqs", c_uint32),
        ("cap_offset", c_uint32),
        ("pad", c_uint32),
    )


class RegionFlags(IntFlag):
    """vfio_region_info.flags (VFIO_REGION_INFO_FLAG_*)."""

    READ = 1 << 0
    WRITE = 1 << 1
    MMAP = 1 << 2
    CAPS = 1 << 3


class RegionInfo(Structure):
    """struct vfio_region_info; `offset` is where the region lies in the device's descriptor."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("index", c_uint32),
        ("cap_offset", c_uint32),
        ("size", c_uint64),
        ("offset", c_uint64),
    )


REGION_CAP_SPARSE_MMAP = 1


class SparseMmap(Structure):
    """struct vfio_region_info_cap_sparse_mmap, without its areas."""

    _fields_ = (("header", CapHeader), ("nr_areas", c_uint32), ("reserved", c_uint32))


class SparseArea(Structure):
    """struct vfio_region_sparse_mmap_area."""

    _fields_ = (("offset", c_uint64), ("size", c_uint64))


class IrqFlags(IntFlag):
    """vfio_irq_info.flags (VFIO_IRQ_INFO_*)."""

    EVENTFD = 1 << 0
    MASKABLE = 1 << 1
    AUTOMASKED = 1 << 2
    NORESIZE = 1 << 3


class IrqInfo(Structure):
    """struct vfio_irq_info."""

    _fields_ = (("argsz", c_uint32), ("flags", c_uint32), ("index", c_uint32), ("count", c_uint32))


class SetFlags(IntFlag):
    """vfio_irq_set.flags (VFIO_IRQ_SET_*): one kind of data, one action."""

    DATA_NONE = 1 << 0
    DATA_EVENTFD = 1 << 2
    UNMASK = 1 << 4
    TRIGGER = 1 << 5


class IrqSet(Structure):
    """struct vfio_irq_set, without its data."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("index", c_uint32),
        ("start", c_uint32),
        ("count", c_uint32),
    )


class Region(IntEnum):
    """Regions of a PCI device (VFIO_PCI_*_REGION_INDEX); BARs are 0 to 5."""

    BAR0 = 0
    ROM = 6
    CONFIG = 7


class Irq(IntEnum):
    """Interrupts of a PCI device (VFIO_PCI_*_IRQ_INDEX)."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERROR = 3
    REQUEST = 4


class HotReset(Structure):
    """struct vfio_pci_hot_reset, without its descriptors of groups."""

    _fields_ = (("argsz", c_uint32), ("flags", c_uint32), ("count", c_uint32))


class BindIommufd(Structure):
    """struct vfio_device_bind_iommufd."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("iommufd", c_int32),
        ("out_devid", c_uint32),
    )


class AttachIommufd(Structure):
    """struct vfio_device_attach_iommufd_pt."""

    _fields_ = (("argsz", c_uint32), ("flags", c_uint32), ("pt_id", c_uint32))


# --- type 1 IOMMU -------------------------------------------------------------------------------

IOMMU_INFO_PGSIZES = 1 << 0
IOMMU_INFO_CAPS = 1 << 1
IOMMU_CAP_IOVA_RANGE = 1
IOMMU_CAP_DMA_AVAIL = 3
DMA_READ = 1 << 0
DMA_WRITE = 1 << 1


class IommuInfo(Structure):
    """struct vfio_iommu_type1_info."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("iova_pgsizes", c_uint64),
        ("cap_offset", c_uint32),
        ("pad", c_uint32),
    )


class IovaRange(Structure):
    """struct vfio_iova_range; `end` is the last byte."""

    _fields_ = (("start", c_uint64), ("end", c_uint64))


class IovaRanges(Structure):
    """struct vfio_iommu_type1_info_cap_iova_range, without its ranges."""

    _fields_ = (("header", CapHeader), ("nr_iovas", c_uint32), ("reserved", c_uint32))


class DmaAvail(Structure):
    """struct vfio_iommu_type1_info_dma_avail."""

    _fields_ = (("header", CapHeader), ("avail", c_uint32))


class DmaMap(Structure):
    """struct vfio_iommu_type1_dma_map."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("vaddr", c_uint64),
        ("iova", c_uint64),
        ("size", c_uint64),
    )


class DmaUnmap(Structure):
    """struct vfio_iommu_type1_dma_unmap; the kernel leaves in `size` what was mapped."""

    _fields_ = (("argsz", c_uint32), ("flags", c_uint32), ("iova", c_uint64), ("size", c_uint64))


# --- iommufd ------------------------------------------------------------------------------------

IOAS_MAP_FIXED_IOVA = 1 << 0
IOAS_MAP_WRITEABLE = 1 << 1
IOAS_MAP_READABLE = 1 << 2


class IoasAlloc(Structure):
    """struct iommu_ioas_alloc."""

    _fields_ = (("size", c_uint32), ("flags", c_uint32), ("out_ioas_id", c_uint32))


class IoasIovaRanges(Structure):
    """struct iommu_ioas_iova_ranges."""

    _fields_ = (
        ("size", c_uint32),
        ("ioas_id", c_uint32),
        ("num_iovas", c_uint32),
        ("reserved", c_uint32),
        ("allowed_iovas", c_uint64),
        ("out_iova_alignment", c_uint64),
    )


class IoasMap(Structure):
    """struct iommu_ioas_map."""

    _fields_ = (
        ("size", c_uint32),
        ("flags", c_uint32),
        ("ioas_id", c_uint32),
        ("reserved", c_uint32),
        ("user_va", c_uint64),
        ("length", c_uint64),
        ("iova", c_uint64),
    )


class IoasUnmap(Structure):
    """struct iommu_ioas_unmap."""

    _fields_ = (("size", c_uint32), ("ioas_id", c_uint32), ("iova", c_uint64), ("length", c_uint64))
