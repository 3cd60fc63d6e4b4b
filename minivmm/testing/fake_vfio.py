"""A host with VFIO, without a kernel for it: trees of sysfs and /dev, and what ioctl(2) answers.

    host = FakeHost(tmp_path)
    device = host.add(FakePciDevice("0000:01:00.0"), group="7")
    monkeypatch.setattr(ioctl, "raw", host.ioctl)

A device's descriptor is a real file, so its regions are read, written and mapped as those of VFIO
are. Requests are refused as VFIO and its type 1 IOMMU refuse them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from contextlib import suppress
from ctypes import sizeof
from pathlib import Path
from typing import Any

from minivmm.testing.fake_container import FakeContainer
from minivmm.testing.fake_vfio_device import DeviceRequests, FakePciDevice, refuse_unless
from minivmm.vfio import abi
from minivmm.vfio.ioctl import Ioctl

_SPACE = 5
"""The id of iommufd's address space."""


class FakeHost:
    """The host below `root`; `sysfs` and `dev` are its trees."""

    def __init__(self, root: Path, *, limit: int | None = 65535) -> None:
        self.sysfs, self.dev = root / "sys", root / "dev"
        self.container = FakeContainer(limit)
        """What is mapped."""
        self.devices: dict[str, FakePciDevice] = {}
        self.viable = True
        self.remaps_interrupts = True
        self.has_type1 = True
        self._iommu_set = False
        self._characters: dict[Path, FakePciDevice] = {}
        self.attached: list[str] = []
        """Devices that iommufd maps memory for."""
        (self.dev / "vfio").mkdir(parents=True)
        (self.dev / "vfio/vfio").touch()
        (self.sysfs / "bus/pci/devices").mkdir(parents=True)

    def add(
        self,
        device: FakePciDevice,
        *,
        group: str | None = "7",
        driver: str | None = "vfio-pci",
    ) -> FakePciDevice:
        """Plug `device` in: into IOMMU group `group`, bound to `driver`."""
        self.devices[device.name] = device
        node = self.sysfs / "devices/pci0000:00" / device.name
        node.mkdir(parents=True)
        (node / "subsystem").symlink_to(self.sysfs / "bus/pci")
        (self.sysfs / "bus/pci/devices" / device.name).symlink_to(node)
        if driver is not None:
            home = self.sysfs / "bus/pci/drivers" / driver
            home.mkdir(parents=True, exist_ok=True)
            (node / "driver").symlink_to(home)
        if group is not None:
            members = self.sysfs / "kernel/iommu_groups" / group / "devices"
            members.mkdir(parents=True, exist_ok=True)
            (members / device.name).symlink_to(node)
            (node / "iommu_group").symlink_to(members.parent)
            (self.dev / "vfio" / group).touch()
        return device

    def offer_iommufd(self, *, groups: bool = True) -> None:
        """Give every device a character device; with `groups` False, that is the only way."""
        (self.dev / "iommu").touch()
        (self.dev / "vfio/devices").mkdir()
        for number, device in enumerate(self.devices.values()):
            node = self.sysfs / "devices/pci0000:00" / device.name
            (node / f"vfio-dev/vfio{number}").mkdir(parents=True)
            path = self.dev / f"vfio/devices/vfio{number}"
            path.touch()
            device.file = os.open(path, os.O_RDWR)
            device.fill()
            self._characters[path] = device
            if not groups:
                (self.dev / "vfio" / (node / "iommu_group").resolve().name).unlink(missing_ok=True)

    def ioctl(self, fd: int, request: int, argument: Any) -> int:
        """ioctl(2), as vfio.ioctl.raw: -1 with the errno of ctypes, or the result."""
        try:
            return self._answer(fd, request, argument)
        except OSError as error:
            ctypes.set_errno(error.errno or errno.EIO)
            return -1

    def _answer(self, fd: int, request: int, argument: Any) -> int:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        memory = getattr(argument, "_obj", argument)
        if path == self.dev / "vfio/vfio":
            return self._container_request(request, memory)
        if path == self.dev / "iommu":
            return self._iommufd_request(request, memory)
        if path in self._characters:
            return self._character_request(self._characters[path], request, memory)
        if path.parent == self.dev / "vfio":
            return self._group_request(request, memory)
        name = path.name.removeprefix("memfd:").removesuffix(" (deleted)")
        return DeviceRequests(self.devices[name]).answer(request, memory)

    def _container_request(self, request: int, memory: Any) -> int:
        match request:
            case Ioctl.GET_API_VERSION:
                return abi.API_VERSION
            case Ioctl.CHECK_EXTENSION:
                return int(memory == abi.TYPE1V2_IOMMU and self.has_type1)
            case Ioctl.SET_IOMMU:
                refuse_unless(self.remaps_interrupts, errno.EPERM)
                self._iommu_set = True
            case Ioctl.IOMMU_GET_INFO:
                self._tell_iommu(memory)
            case Ioctl.IOMMU_MAP_DMA:
                wish = abi.DmaMap.from_buffer(memory)
                refuse_unless(self._iommu_set, errno.EINVAL)
                self.container.map(wish.iova, wish.vaddr, wish.size)
            case Ioctl.IOMMU_UNMAP_DMA:
                undo = abi.DmaUnmap.from_buffer(memory)
                before = sum(one.size for one in self.container.mappings)
                with suppress(FileNotFoundError):  # the kernel just says how much it was
                    self.container.unmap(undo.iova, undo.size)
                undo.size = before - sum(one.size for one in self.container.mappings)
            case _:
                refuse_unless(False, errno.ENOTTY)
        return 0

    def _tell_iommu(self, memory: Any) -> None:
        """Two capabilities; a caller with too little room is told how much it takes."""
        (first, last), *_ = self.container.windows
        head = abi.IommuInfo.from_buffer(memory)
        room, begin = int(head.argsz), sizeof(abi.IommuInfo)
        ranges = struct.pack("=HHIIIQQ", abi.IOMMU_CAP_IOVA_RANGE, 1, begin + 32, 1, 0, first, last)
        limit = self.container.limit
        available = struct.pack("=HHII", abi.IOMMU_CAP_DMA_AVAIL, 1, 0, limit or 0)
        tail = ranges + (available if limit is not None else b"")
        if limit is None:
            tail = tail[:4] + bytes(4) + tail[8:]
        head.argsz = begin + len(tail)
        head.flags = abi.IOMMU_INFO_PGSIZES | abi.IOMMU_INFO_CAPS
        head.iova_pgsizes = self.container.page_sizes
        if room >= begin + len(tail):
            head.cap_offset = begin
            ctypes.memmove(ctypes.addressof(memory) + begin, tail, len(tail))

    def _iommufd_request(self, request: int, memory: Any) -> int:
        """One address space; sizes of structures are checked as the kernel does."""
        sizes = {
            Ioctl.IOMMU_IOAS_ALLOC: 12,
            Ioctl.IOMMU_IOAS_IOVA_RANGES: 32,
            Ioctl.IOMMU_IOAS_MAP: 40,
            Ioctl.IOMMU_IOAS_UNMAP: 24,
        }
        refuse_unless(request in sizes, errno.ENOTTY)
        size = ctypes.c_uint32.from_buffer(memory).value
        refuse_unless(size == sizes[Ioctl(request)], errno.EINVAL)
        if request == Ioctl.IOMMU_IOAS_ALLOC:
            abi.IoasAlloc.from_buffer(memory).out_ioas_id = _SPACE
            return 0
        place = abi.IoasMap.ioas_id.offset if request == Ioctl.IOMMU_IOAS_MAP else 4
        refuse_unless(ctypes.c_uint32.from_buffer(memory, place).value == _SPACE, errno.ENOENT)
        if request == Ioctl.IOMMU_IOAS_IOVA_RANGES:
            self._tell_ranges(abi.IoasIovaRanges.from_buffer(memory))
        elif request == Ioctl.IOMMU_IOAS_MAP:
            wish = abi.IoasMap.from_buffer(memory)
            every = abi.IOAS_MAP_FIXED_IOVA | abi.IOAS_MAP_READABLE | abi.IOAS_MAP_WRITEABLE
            refuse_unless(wish.flags == every, errno.EOPNOTSUPP)
            self.container.map(wish.iova, wish.user_va, wish.length)
        else:
            undo = abi.IoasUnmap.from_buffer(memory)
            self.container.unmap(undo.iova, undo.length)
        return 0

    def _tell_ranges(self, request: abi.IoasIovaRanges) -> None:
        """How many there are, and EMSGSIZE if that is more than the caller has room for."""
        windows, room = self.container.windows, int(request.num_iovas)
        request.num_iovas = len(windows)
        refuse_unless(room >= len(windows), errno.EMSGSIZE)
        ranges = (abi.IovaRange * room).from_address(request.allowed_iovas)
        for number, (first, last) in enumerate(windows):
            ranges[number].start, ranges[number].end = first, last
        request.out_iova_alignment = self.container.page_sizes & -self.container.page_sizes

    def _character_request(self, device: FakePciDevice, request: int, memory: Any) -> int:
        """Of a device's character device: it must be bound to iommufd before anything else."""
        if request == Ioctl.DEVICE_BIND_IOMMUFD:
            bind = abi.BindIommufd.from_buffer(memory)
            path = Path(f"/proc/self/fd/{bind.iommufd}").readlink()
            refuse_unless(path == self.dev / "iommu", errno.EBADF)
            device.bound = True
            return 0
        refuse_unless(device.bound, errno.EINVAL)
        if request == Ioctl.DEVICE_ATTACH_IOMMUFD_PT:
            refuse_unless(abi.AttachIommufd.from_buffer(memory).pt_id == _SPACE, errno.ENOENT)
            self.attached.append(device.name)
            return 0
        return DeviceRequests(device).answer(request, memory)

    def _group_request(self, request: int, memory: Any) -> int:
        match request:
            case Ioctl.GROUP_GET_STATUS:
                abi.GroupStatus.from_buffer(memory).flags = abi.GROUP_VIABLE if self.viable else 0
            case Ioctl.GROUP_SET_CONTAINER:
                pass
            case Ioctl.GROUP_GET_DEVICE_FD:
                name = memory.value.decode()
                refuse_unless(name in self.devices, errno.ENODEV)
                self.devices[name].bound = True
                return self.devices[name].open()
            case _:
                refuse_unless(False, errno.ENOTTY)
        return 0
