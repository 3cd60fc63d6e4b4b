"""The memory system calls by cffi (ABI mode: no compiler needed); errno becomes an OSError."""

from __future__ import annotations

import os
from typing import Any

import cffi

PROT_READ_WRITE = 0x1 | 0x2
MAP_SHARED = 0x01
MAP_PRIVATE = 0x02
MAP_FIXED = 0x10
MAP_ANONYMOUS = 0x20
MAP_NORESERVE = 0x4000
MADV_DONTNEED = 4
MADV_HUGEPAGE = 14
MADV_NOHUGEPAGE = 15
MADV_DONTDUMP = 16
MADV_POPULATE_WRITE = 23  # since Linux 5.14

ffi = cffi.FFI()
ffi.cdef(
    """
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, int64_t offset);
    int munmap(void *addr, size_t length);
    int madvise(void *addr, size_t length, int advice);
    int mincore(void *addr, size_t length, unsigned char *vec);
    """
)
_libc: Any = ffi.dlopen(None)


def mmap(length: int, flags: int, fd: int = -1) -> int:
    """Map `length` bytes readable and writable; returns the hva. Raises OSError."""
    address = int(
        ffi.cast("uintptr_t", _libc.mmap(ffi.NULL, length, PROT_READ_WRITE, flags, fd, 0))
    )
    if address == (1 << 64) - 1:
        raise _error("mmap")
    return address


def munmap(hva: int, length: int) -> None:
    """Unmap [hva, hva + length) (bytes). Raises OSError."""
    if _libc.munmap(ffi.cast("void *", hva), length):
        raise _error("munmap")


def madvise(hva: int, length: int, advice: int) -> None:
    """madvise(2) on [hva, hva + length) (bytes). Raises OSError."""
    if _libc.madvise(ffi.cast("void *", hva), length, advice):
        raise _error("madvise")


def mincore(hva: int, length: int) -> bytes:
    """One byte a page of [hva, hva + length): bit 0 set if it is resident. Raises OSError."""
    vector = ffi.new("unsigned char[]", -(-length // os.sysconf("SC_PAGE_SIZE")))
    if _libc.mincore(ffi.cast("void *", hva), length, vector):
        raise _error("mincore")
    return bytes(ffi.buffer(vector))


def buffer(hva: int, length: int) -> memoryview:
    """A writable view of [hva, hva + length) (bytes); invalid once that range is unmapped."""
    return memoryview(ffi.buffer(ffi.cast("unsigned char *", hva), length))


def _error(call: str) -> OSError:
    return OSError(ffi.errno, f"{call}: {os.strerror(ffi.errno)}")
