"""Container: what devices see of host memory, as mappings from their addresses (iova) to ours.

The face that dma.py works with, and the type 1 IOMMU behind /dev/vfio/vfio; iommufd's is in
iommufd.py. Which memory is mapped when is dma.py's; which devices use it is host.py's.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from ctypes import byref
from typing import Protocol

from minivmm.vfio import abi
from minivmm.vfio.ioctl import Ioctl, call


class Container(Protocol):
    """An address space for DMA. Addresses and sizes are bytes, multiples of the smallest page.

    A mapping pins all of its memory. It is undone as it was made: no request can cut one.
    """

    limit: int | None
    """How many mappings may exist at once; None if there is no limit."""
    page_sizes: int
    """Page sizes of the IOMMU, as the sum of the powers of two."""
    windows: tuple[tuple[int, int], ...]
    """(first iova, last iova) of each range that may be mapped; the gaps are the host's own."""

    def map(self, iova: int, hva: int, size: int) -> None:
        """Let devices read and write [`hva`, `hva` + `size`) at `iova`.

        Raises OSError, and maps nothing: ENOMEM (RLIMIT_MEMLOCK, or no memory), ENOSPC (`limit`),
        EEXIST (overlaps a mapping), EINVAL (outside the windows), EFAULT (no memory at `hva`).
        """

    def unmap(self, iova: int, size: int) -> None:
        """Undo the mappings inside [`iova`, `iova` + `size`), which must cover it exactly.

        Raises OSError if there are none (ENOENT), or one reaches beyond it (EINVAL).
        """

    def close(self) -> None:
        """Undo all mappings; devices must have been closed before. Harmless when repeated."""


class Type1Container:
    """/dev/vfio/vfio with a type 1 (version 2) IOMMU; `fd` has a group and its IOMMU already.

    The kernel counts its mappings (module parameter dma_entry_limit of vfio_iommu_type1) and the
    pages they pin (RLIMIT_MEMLOCK of this process).
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        info = self._information()
        head = abi.IommuInfo.from_buffer_copy(info)
        self.page_sizes = int(head.iova_pgsizes)
        self.limit: int | None = None
        self.windows: tuple[tuple[int, int], ...] = ((0, (1 << 64) - 1),)
        start = head.cap_offset if head.flags & abi.IOMMU_INFO_CAPS else 0
        for kind, at in abi.capabilities(info, start):
            if kind == abi.IOMMU_CAP_IOVA_RANGE:
                self.windows = tuple(_ranges(info, at))
            elif kind == abi.IOMMU_CAP_DMA_AVAIL:
                self.limit = int(abi.DmaAvail.from_buffer_copy(info, at).avail)

    def map(self, iova: int, hva: int, size: int) -> None:
        """See Container."""
        request = abi.DmaMap(flags=abi.DMA_READ | abi.DMA_WRITE, vaddr=hva, iova=iova, size=size)
        request.argsz = ctypes.sizeof(request)
        call(self._fd, Ioctl.IOMMU_MAP_DMA, byref(request))

    def unmap(self, iova: int, size: int) -> None:
        """See Container."""
        request = abi.DmaUnmap(iova=iova, size=size)
        request.argsz = ctypes.sizeof(request)
        call(self._fd, Ioctl.IOMMU_UNMAP_DMA, byref(request))
        if request.size != size:
            raise OSError(
                errno.ENOENT, f"{size:#x} bytes at iova {iova:#x} had {request.size:#x} mapped"
            )

    def close(self) -> None:
        """See Container."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _information(self) -> bytes:
        """struct vfio_iommu_type1_info and the capabilities behind it."""
        size = ctypes.sizeof(abi.IommuInfo)
        while True:
            buffer = ctypes.create_string_buffer(size)
            head = abi.IommuInfo.from_buffer(buffer)
            head.argsz = size
            call(self._fd, Ioctl.IOMMU_GET_INFO, byref(head))
            if head.argsz <= size:
                return bytes(buffer)
            size = int(head.argsz)


def _ranges(info: bytes, at: int) -> Iterator[tuple[int, int]]:
    head = abi.IovaRanges.from_buffer_copy(info, at)
    first = at + ctypes.sizeof(abi.IovaRanges)
    for index in range(head.nr_iovas):
        one = abi.IovaRange.from_buffer_copy(info, first + index * ctypes.sizeof(abi.IovaRange))
        yield int(one.start), int(one.end)
