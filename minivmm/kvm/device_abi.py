"""Structures and constants of <linux/kvm.h> for devices inside KVM, of which VFIO's is used."""

from __future__ import annotations

from ctypes import Structure, c_uint32, c_uint64

DEV_TYPE_VFIO = 4
DEV_VFIO_FILE = 1
DEV_VFIO_FILE_ADD, DEV_VFIO_FILE_DEL = 1, 2


class KvmCreateDevice(Structure):
    """Which device is wanted, and the descriptor that came of it."""

    _fields_ = (("type", c_uint32), ("fd", c_uint32), ("flags", c_uint32))


class KvmDeviceAttr(Structure):
    """A setting of a device; `addr` is where its value is."""

    _fields_ = (("flags", c_uint32), ("group", c_uint32), ("attr", c_uint64), ("addr", c_uint64))
