"""Requests to VFIO and iommufd: their numbers, and the one way to make them.

As in kvm/ioctl.py, ioctl(2) is declared with a fixed number of arguments. Failures are OSErrors:
what they mean to a user is for the callers, who know what they were at.
"""

from __future__ import annotations

import ctypes
import errno
import os
from ctypes import c_int, c_ulong, c_void_p
from enum import IntEnum
from typing import Any

_VFIO = ord(";") << 8 | 100
"""<linux/vfio.h>: type ';', numbers from 100; every request is an _IO(), sizes are in argsz."""
_IOMMUFD = ord(";") << 8 | 0x80
"""<linux/iommufd.h>: the same type, numbers from 0x80."""


class Ioctl(IntEnum):
    """Requests: of a container, a group, a device, a type 1 IOMMU; then of iommufd."""

    GET_API_VERSION = _VFIO + 0
    CHECK_EXTENSION = _VFIO + 1
    SET_IOMMU = _VFIO + 2
    GROUP_GET_STATUS = _VFIO + 3
    GROUP_SET_CONTAINER = _VFIO + 4
    GROUP_GET_DEVICE_FD = _VFIO + 6
    DEVICE_GET_INFO = _VFIO + 7
    DEVICE_GET_REGION_INFO = _VFIO + 8
    DEVICE_GET_IRQ_INFO = _VFIO + 9
    DEVICE_SET_IRQS = _VFIO + 10
    DEVICE_RESET = _VFIO + 11
    IOMMU_GET_INFO = _VFIO + 12
    IOMMU_MAP_DMA = _VFIO + 13
    DEVICE_PCI_HOT_RESET = _VFIO + 13  # the same number, on a device
    IOMMU_UNMAP_DMA = _VFIO + 14
    DEVICE_BIND_IOMMUFD = _VFIO + 18
    DEVICE_ATTACH_IOMMUFD_PT = _VFIO + 19

    IOMMU_IOAS_ALLOC = _IOMMUFD + 1
    IOMMU_IOAS_IOVA_RANGES = _IOMMUFD + 4
    IOMMU_IOAS_MAP = _IOMMUFD + 5
    IOMMU_IOAS_UNMAP = _IOMMUFD + 6


_libc = ctypes.CDLL(None, use_errno=True)

raw: Any = _libc.ioctl
"""ioctl(fd, request, argument) -> -1 with ctypes.get_errno(), or the result."""
raw.argtypes = [c_int, c_ulong, c_void_p]
raw.restype = c_int


def call(fd: int, request: Ioctl, argument: Any = 0) -> int:
    """Make `request` on `fd`; returns the kernel's answer (>= 0).

    `argument` is an integer, a ctypes array or byref(structure). A call interrupted by a signal is
    made again. Raises OSError.
    """
    while True:
        result: int = raw(fd, int(request), argument)
        if result >= 0:
            return result
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
