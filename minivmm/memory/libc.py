"""The memory system calls by cffi (ABI mode: no compiler needed); errno becomes an OSError.

What they look like in C is in libc_declared.py.
"""

from __future__ import annotations

import os
from typing import Any

from minivmm.memory.libc_calls import ffi

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
"""Host base page size in bytes."""

PROT_NONE = 0x0
PROT_READ = 0x1
PROT_WRITE = 0x2
MAP_SHARED = 0x01
MAP_PRIVATE = 0x02
MAP_FIXED = 0x10
MAP_ANONYMOUS = 0x20
MAP_NORESERVE = 0x4000
MADV_DONTNEED = 4
MADV_DONTFORK = 10
MADV_HUGEPAGE = 14
MADV_NOHUGEPAGE = 15
MADV_POPULATE_WRITE = 23  # since Linux 5.14
FALLOC_FL_KEEP_SIZE = 0x1
FALLOC_FL_PUNCH_HOLE = 0x2
FALLOC_FL_ZERO_RANGE = 0x10

PAGE_IS_PRESENT = 0x8
PAGE_IS_SWAPPED = 0x10
_PAGEMAP_SCAN = 0xC060_6610  # _IOWR('f', 16, struct pm_scan_arg), <linux/fs.h>

_libc: Any = ffi.dlopen(None)


def mmap(length: int, prot: int, flags: int, *, fd: int = -1, hva: int = 0, offset: int = 0) -> int:
    """Map `length` bytes of `fd` at `offset`, or of nothing; returns the hva. Raises OSError."""
    where = ffi.cast("void *", hva)
    address = int(ffi.cast("uintptr_t", _libc.mmap(where, length, prot, flags, fd, offset)))
    if address == (1 << 64) - 1:
        raise _error("mmap")
    return address


def munmap(hva: int, length: int) -> None:
    """Unmap [hva, hva + length) (bytes). Raises OSError."""
    if _libc.munmap(ffi.cast("void *", hva), length):
        raise _error("munmap")


def mprotect(hva: int, length: int, prot: int) -> None:
    """mprotect(2) on [hva, hva + length) (bytes). Raises OSError."""
    if _libc.mprotect(ffi.cast("void *", hva), length, prot):
        raise _error("mprotect")


def madvise(hva: int, length: int, advice: int) -> None:
    """madvise(2) on [hva, hva + length) (bytes). Raises OSError."""
    if _libc.madvise(ffi.cast("void *", hva), length, advice):
        raise _error("madvise")


def clear(hva: int, length: int) -> None:
    """Write zeroes to [hva, hva + length) (bytes)."""
    _libc.memset(ffi.cast("void *", hva), 0, length)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Free [offset, offset + length) (bytes) of a file, which keeps its size. Raises OSError."""
    if _libc.fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length):
        raise _error("fallocate")


def zero_range(fd: int, offset: int, length: int) -> None:
    """Make [offset, offset + length) (bytes) of a file zeroes that stay allocated. OSError."""
    if _libc.fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length):
        raise _error("fallocate")


def scan_pages(
    pagemap: int, start: int, end: int, *, any_of: int, room: int
) -> tuple[list[tuple[int, int]], int]:
    """Runs of pages of [start, end) (hva) that have one of the categories PAGE_IS_*, and where the
    scan stopped: at `end`, or earlier after `room` runs.

    `pagemap` is a descriptor of /proc/self/pagemap. The ioctl came with Linux 6.7; OSError (ENOTTY)
    before that. Holes cost next to nothing.
    """
    runs: Any = ffi.new("struct page_region[]", room)
    argument: Any = ffi.new("struct pm_scan_arg *")
    argument.size = ffi.sizeof("struct pm_scan_arg")
    argument.start, argument.end = start, end
    argument.vec, argument.vec_len = int(ffi.cast("uintptr_t", runs)), room
    argument.category_anyof_mask = any_of
    # All runs come out in one category, or neighbours that differ would not be joined.
    argument.return_mask = 0
    found = _libc.ioctl(pagemap, _PAGEMAP_SCAN, argument)
    if found < 0:
        raise _error("ioctl PAGEMAP_SCAN")
    return [(runs[i].start, runs[i].end) for i in range(found)], int(argument.walk_end)


def is_zero(hva: int, length: int) -> bool:
    """Are all of [hva, hva + length) (bytes, at least 2) zeroes? Looks, and copies nothing."""
    start = ffi.cast("const unsigned char *", hva)
    return not start[0] and not _libc.memcmp(start, start + 1, length - 1)


def buffer(hva: int, length: int) -> memoryview:
    """A writable view of [hva, hva + length) (bytes); invalid once that range is unmapped."""
    return memoryview(ffi.buffer(ffi.cast("unsigned char *", hva), length))


def _error(call: str) -> OSError:
    return OSError(ffi.errno, f"{call}: {os.strerror(ffi.errno)}")
