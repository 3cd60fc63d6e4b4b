"""Structures and constants of <linux/kvm.h> that only the log of written pages needs."""

from __future__ import annotations

from ctypes import Structure, c_uint32, c_uint64

MEM_LOG_DIRTY_PAGES = 1 << 0
"""kvm_userspace_memory_region.flags."""


class KvmDirtyLog(Structure):
    """Asks for the bitmap of memory slot `slot`, to be stored at host address `dirty_bitmap`."""

    _fields_ = [("slot", c_uint32), ("padding1", c_uint32), ("dirty_bitmap", c_uint64)]


def bitmap_size(memory_size: int) -> int:
    """Bytes of the bitmap of a slot of `memory_size` bytes: a bit a page, in 64-bit words."""
    return -(-memory_size // (64 * 4096)) * 8
