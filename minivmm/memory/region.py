"""One host mapping that backs guest memory: map, view, discard, residency.

A region knows host addresses and bytes. Where the guest sees it is guest.py's business.
"""

from __future__ import annotations

import os
from contextlib import suppress

from minivmm.errors import HostError
from minivmm.memory import libc
from minivmm.units import MIB, align_down, align_up, format_size

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
"""Host base page size in bytes."""

HUGE_ALIGNMENT = 2 * MIB
"""KVM maps huge pages only if gpa and hva agree in their low 21 bits (reference F.3)."""

_MINCORE_CHUNK = 1 << 30


class Region:
    """`size` bytes of private anonymous memory, aligned to 2 MiB, nothing populated.

    Private anonymous memory is what lets unplugged blocks be read harmlessly (they map the shared
    zero page; MEM-D-20) and be given back with madvise(MADV_DONTNEED) alone (reference E.6).
    Raises HostError when the host cannot map it.
    """

    def __init__(self, size: int) -> None:
        self.size = align_up(size, PAGE_SIZE)
        flags = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS | libc.MAP_NORESERVE
        try:
            start = libc.mmap(self.size + HUGE_ALIGNMENT, flags)
        except OSError as error:
            raise HostError(
                f"cannot map {format_size(size)} of guest memory ({error}): use a smaller -m or"
                " size=, or set vm.overcommit_memory=1"
            ) from error
        self.hva = align_up(start, HUGE_ALIGNMENT)
        end = self.hva + self.size
        if self.hva > start:
            libc.munmap(start, self.hva - start)
        libc.munmap(end, start + self.size + HUGE_ALIGNMENT - end)
        self._advise(libc.MADV_HUGEPAGE)
        self._view = libc.buffer(self.hva, self.size)

    def forbid_huge_pages(self) -> None:
        """Populate base pages only, for those who discard less than a huge page at a time."""
        self._advise(libc.MADV_NOHUGEPAGE)

    def view(self, offset: int, length: int) -> memoryview:
        """Writable view of `length` bytes at `offset`. The caller has checked the bounds."""
        return self._view[offset : offset + length]

    def discard(self, offset: int, length: int) -> None:
        """Give [offset, offset + length) (bytes, page multiples) back to the host.

        It reads as zeroes afterwards. Raises OSError if the host refuses; then nothing is promised
        about the content, as for any unplugged memory.
        """
        libc.madvise(self.hva + offset, length, libc.MADV_DONTNEED)

    def resident(self, offset: int = 0, length: int | None = None) -> int:
        """Bytes of [offset, offset + length) that occupy host memory, as mincore(2) sees it.

        Untouched memory that was only read counts as well (the shared zero page is mapped there,
        2 MiB at a time), swapped memory does not. Walks the range: 0.4 s for an empty TiB.
        """
        start = align_down(offset, PAGE_SIZE)
        end = self.size if length is None else align_up(offset + length, PAGE_SIZE)
        pages = 0
        for at in range(start, end, _MINCORE_CHUNK):
            vector = libc.mincore(self.hva + at, min(_MINCORE_CHUNK, end - at))
            pages += len(vector) - vector.count(0)
        return pages * PAGE_SIZE

    def close(self) -> None:
        """Unmap; every view of it is dead afterwards. Harmless when repeated."""
        if self.size:
            self._view.release()
            libc.munmap(self.hva, self.size)
            self.size = 0

    def _advise(self, advice: int) -> None:
        """Best effort: a host kernel built without transparent huge pages knows no such advice."""
        with suppress(OSError):
            libc.madvise(self.hva, self.size, advice)
