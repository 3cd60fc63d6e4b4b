"""A container for DMA mappings as a type 1 IOMMU is one, without VFIO: refuses what that refuses.

What it has is the truth that checks look at (dma_checks.py), whatever our own records say.
"""

from __future__ import annotations

import errno
from bisect import bisect_left, insort
from dataclasses import dataclass

from minivmm.memory.region import PAGE_SIZE


@dataclass(frozen=True, order=True)
class Mapped:
    """`size` bytes from `iova` on are those from `hva` on."""

    iova: int
    size: int
    hva: int

    @property
    def end(self) -> int:
        """First address after it."""
        return self.iova + self.size


class FakeContainer:
    """`limit` mappings at most; `fails` of "map" or "unmap" has these refused until changed."""

    def __init__(self, limit: int | None = None, page_sizes: int = ~(PAGE_SIZE - 1)) -> None:
        self.limit = limit
        self.page_sizes = page_sizes & ((1 << 64) - 1)
        self.windows: tuple[tuple[int, int], ...] = ((0, (1 << 64) - 1),)
        self.mappings: list[Mapped] = []
        """By address; none overlaps another."""
        self.fails = ""
        self.maps_until_failure = 0
        """Of so many calls of map() from now on the last one fails; 0: none."""
        self.failures = 0
        """Calls that were refused."""
        self.calls = 0
        """System calls that these would have been."""
        self.closed = False

    def map(self, iova: int, hva: int, size: int) -> None:
        """As VFIO_IOMMU_MAP_DMA. Raises OSError, with nothing changed."""
        self.calls += 1
        if self.fails == "map":
            self._refuse(errno.ENOMEM)
        if self.maps_until_failure:
            self.maps_until_failure -= 1
            if not self.maps_until_failure:
                self._refuse(errno.ENOMEM)
        least = self.page_sizes & -self.page_sizes
        inside = any(first <= iova and iova + size - 1 <= last for first, last in self.windows)
        if not size or (iova | hva | size) % least or not inside:
            self._refuse(errno.EINVAL)
        if self._touching(iova, size):
            self._refuse(errno.EEXIST)
        if self.limit is not None and len(self.mappings) >= self.limit:
            self._refuse(errno.ENOSPC)
        insort(self.mappings, Mapped(iova, size, hva))

    def unmap(self, iova: int, size: int) -> None:
        """As VFIO_IOMMU_UNMAP_DMA: whole mappings only. Raises OSError, with nothing changed."""
        self.calls += 1
        if self.fails == "unmap":
            self._refuse(errno.EIO)
        found = self._touching(iova, size)
        if any(one.iova < iova or one.end > iova + size for one in found):
            self._refuse(errno.EINVAL)
        if sum(one.size for one in found) != size:
            self._refuse(errno.ENOENT)
        first = self.mappings.index(found[0])
        del self.mappings[first : first + len(found)]

    def translate(self, iova: int) -> int | None:
        """The hva that a device would reach, or None: it would fault."""
        found = self._touching(iova, 1)
        return found[0].hva + iova - found[0].iova if found else None

    def close(self) -> None:
        """Undo everything."""
        self.mappings.clear()
        self.closed = True

    def _touching(self, iova: int, size: int) -> list[Mapped]:
        first = bisect_left(self.mappings, iova, key=lambda one: one.end - 1)
        behind = bisect_left(self.mappings, iova + size, key=lambda one: one.iova)
        return self.mappings[first:behind]

    def _refuse(self, number: int) -> None:
        self.failures += 1
        raise OSError(number, errno.errorcode[number])
