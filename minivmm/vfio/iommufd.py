"""Container over iommufd: an I/O address space of /dev/iommu. Linux 6.6 and later, if built in.

It has no limit on mappings, and counts pinned pages against RLIMIT_MEMLOCK of the user as well.
"""

from __future__ import annotations

import ctypes
import errno
import os
from ctypes import byref, sizeof

from minivmm.vfio import abi
from minivmm.vfio.ioctl import Ioctl, call


class IommufdContainer:
    """A Container (container.py) over descriptor `fd` of /dev/iommu, which it owns.

    Ranges and page sizes are those of the devices that are attached: ask after attach().
    """

    limit: int | None = None

    def __init__(self, fd: int) -> None:
        self._fd = fd
        request = abi.IoasAlloc(size=sizeof(abi.IoasAlloc))
        call(fd, Ioctl.IOMMU_IOAS_ALLOC, byref(request))
        self._space = int(request.out_ioas_id)
        self.page_sizes = 0
        self.windows: tuple[tuple[int, int], ...] = ()

    def attach(self, device: int) -> None:
        """Have the device behind descriptor `device` of /dev/vfio/devices use it: opens it.

        Raises OSError.
        """
        bind = abi.BindIommufd(argsz=sizeof(abi.BindIommufd), iommufd=self._fd)
        call(device, Ioctl.DEVICE_BIND_IOMMUFD, byref(bind))
        attach = abi.AttachIommufd(argsz=sizeof(abi.AttachIommufd), pt_id=self._space)
        call(device, Ioctl.DEVICE_ATTACH_IOMMUFD_PT, byref(attach))
        self._learn()

    def map(self, iova: int, hva: int, size: int) -> None:
        """See Container."""
        flags = abi.IOAS_MAP_FIXED_IOVA | abi.IOAS_MAP_WRITEABLE | abi.IOAS_MAP_READABLE
        request = abi.IoasMap(
            size=sizeof(abi.IoasMap),
            flags=flags,
            ioas_id=self._space,
            user_va=hva,
            length=size,
            iova=iova,
        )
        call(self._fd, Ioctl.IOMMU_IOAS_MAP, byref(request))

    def unmap(self, iova: int, size: int) -> None:
        """See Container."""
        request = abi.IoasUnmap(sizeof(abi.IoasUnmap), self._space, iova, size)
        call(self._fd, Ioctl.IOMMU_IOAS_UNMAP, byref(request))
        if request.length != size:
            raise OSError(
                errno.ENOENT, f"{size:#x} bytes at iova {iova:#x} had {request.length:#x} mapped"
            )

    def close(self) -> None:
        """See Container."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _learn(self) -> None:
        """The windows and the least page size now."""
        count = 16
        while True:
            ranges = (abi.IovaRange * count)()
            request = abi.IoasIovaRanges(
                size=sizeof(abi.IoasIovaRanges),
                ioas_id=self._space,
                num_iovas=count,
                allowed_iovas=ctypes.addressof(ranges),
            )
            try:
                call(self._fd, Ioctl.IOMMU_IOAS_IOVA_RANGES, byref(request))
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    raise
                count = int(request.num_iovas)
                continue
            found = ranges[: int(request.num_iovas)]
            self.windows = tuple((int(one.start), int(one.end)) for one in found)
            self.page_sizes = int(request.out_iova_alignment)
            return
