"""VfioDevice: an opened device of the host: its regions, interrupts and resets, but not PCI.

How it was found and opened is host.py's; what a guest sees of it is devices/vfio_pci's.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from ctypes import byref, sizeof
from dataclasses import dataclass
from typing import Any

from minivmm.memory import libc
from minivmm.units import align_down, align_up
from minivmm.vfio import abi
from minivmm.vfio.ioctl import Ioctl, call


@dataclass(frozen=True)
class RegionView:
    """A region of a device: registers, memory, or its configuration space."""

    index: int
    size: int
    """Bytes; 0 if the device has no such region."""
    offset: int
    """Where it begins in the device's descriptor."""
    areas: tuple[tuple[int, int], ...]
    """(offset in the region, size) of what may be mapped, in whole pages."""


@dataclass(frozen=True)
class IrqView:
    """A kind of interrupt of a device."""

    count: int
    resizable: bool
    """May vectors be added while others are in use?"""


class VfioDevice:
    """A device behind descriptor `fd`, which it owns; `name` is what people call it.

    `owned` are descriptors that prove to the kernel that a hot reset harms nobody else: of the
    groups that this process has opened. Methods raise OSError.
    """

    def __init__(self, fd: int, name: str, *, owned: Sequence[int] = ()) -> None:
        self.fd = fd
        self.name = name
        self._owned = owned
        self._mapped: list[tuple[int, int]] = []
        info = abi.DeviceInfo(argsz=sizeof(abi.DeviceInfo))
        call(fd, Ioctl.DEVICE_GET_INFO, byref(info))
        self.flags = abi.DeviceFlags(info.flags & (abi.DeviceFlags.PCI | abi.DeviceFlags.RESET))
        self._regions = int(info.num_regions)
        self._irqs = int(info.num_irqs)

    def region(self, index: int) -> RegionView:
        """What region `index` is; one that is not there has size 0."""
        if index >= self._regions:
            return RegionView(index, 0, 0, ())
        size = sizeof(abi.RegionInfo)
        while True:
            buffer = ctypes.create_string_buffer(size)
            head = abi.RegionInfo.from_buffer(buffer)
            head.argsz, head.index = size, index
            try:
                call(self.fd, Ioctl.DEVICE_GET_REGION_INFO, byref(head))
            except OSError as error:
                if error.errno == errno.EINVAL:  # as mdev devices have it for what they have not
                    return RegionView(index, 0, 0, ())
                raise
            if head.argsz <= size:
                return _region(head, bytes(buffer))
            size = int(head.argsz)

    def read(self, region: RegionView, offset: int, size: int) -> int:
        """The little-endian value of `size` bytes at `offset` of `region`."""
        data = os.pread(self.fd, size, region.offset + offset)
        if len(data) != size:
            raise OSError(errno.EIO, f"{self.name} gave {len(data)} of {size} bytes")
        return int.from_bytes(data, "little")

    def write(self, region: RegionView, offset: int, size: int, value: int) -> None:
        """Write the low `size` bytes of `value`."""
        data = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        if os.pwrite(self.fd, data, region.offset + offset) != size:
            raise OSError(errno.EIO, f"{self.name} took not all of {size} bytes")

    def map(self, region: RegionView, offset: int, size: int) -> int:
        """Map bytes inside one of the region's areas; returns the hva. Unmapped by close()."""
        prot, shared = libc.PROT_READ | libc.PROT_WRITE, libc.MAP_SHARED
        hva = libc.mmap(size, prot, shared, fd=self.fd, offset=region.offset + offset)
        self._mapped.append((hva, size))
        return hva

    def irq(self, index: abi.Irq) -> IrqView:
        """What interrupts of kind `index` it has; count 0 if none."""
        if index >= self._irqs:
            return IrqView(0, False)
        info = abi.IrqInfo(argsz=sizeof(abi.IrqInfo), index=index)
        try:
            call(self.fd, Ioctl.DEVICE_GET_IRQ_INFO, byref(info))
        except OSError as error:
            if error.errno == errno.EINVAL:
                return IrqView(0, False)
            raise
        usable = info.flags & abi.IrqFlags.EVENTFD
        return IrqView(int(info.count) if usable else 0, not info.flags & abi.IrqFlags.NORESIZE)

    def signal_by(self, index: abi.Irq, fds: Sequence[int], *, start: int = 0) -> int:
        """Have interrupts `start` on of kind `index` write to eventfds `fds` (-1: to none).

        Switches that kind of interrupt on. Returns 0, or how many the host has if it has fewer.
        """
        return self._set(index, abi.SetFlags.TRIGGER, start, fds)

    def unmask_by(self, index: abi.Irq, fd: int) -> None:
        """Have writes to eventfd `fd` unmask interrupt 0 of kind `index`."""
        self._set(index, abi.SetFlags.UNMASK, 0, [fd])

    def switch_off(self, index: abi.Irq) -> None:
        """No more interrupts of kind `index`; it forgets all eventfds."""
        head = abi.IrqSet(sizeof(abi.IrqSet), abi.SetFlags.DATA_NONE | abi.SetFlags.TRIGGER, index)
        call(self.fd, Ioctl.DEVICE_SET_IRQS, byref(head))

    def reset(self) -> None:
        """As after power-on: by itself if it can, else with its bus if nobody else is on it.

        The kernel keeps configuration space. Raises OSError if neither is possible.
        """
        if self.flags & abi.DeviceFlags.RESET:
            with suppress(OSError):
                call(self.fd, Ioctl.DEVICE_RESET)
                return
        head = abi.HotReset(count=len(self._owned))
        request = bytes(head) + struct.pack(f"={len(self._owned)}i", *self._owned)
        buffer = ctypes.create_string_buffer(request, len(request))
        abi.HotReset.from_buffer(buffer).argsz = len(request)
        call(self.fd, Ioctl.DEVICE_PCI_HOT_RESET, byref(buffer))

    def close(self) -> None:
        """Unmap its regions and give it back; the kernel stops it. Harmless when repeated."""
        for hva, size in self._mapped:
            libc.munmap(hva, size)
        self._mapped.clear()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _set(self, index: abi.Irq, action: abi.SetFlags, start: int, fds: Sequence[int]) -> int:
        size = sizeof(abi.IrqSet) + 4 * len(fds)
        head = abi.IrqSet(size, abi.SetFlags.DATA_EVENTFD | action, index, start, len(fds))
        request: Any = ctypes.create_string_buffer(
            bytes(head) + struct.pack(f"={len(fds)}i", *fds), size
        )
        return call(self.fd, Ioctl.DEVICE_SET_IRQS, byref(request))


def _region(head: abi.RegionInfo, answer: bytes) -> RegionView:
    size = int(head.size)
    areas: list[tuple[int, int]] = []
    if head.flags & abi.RegionFlags.MMAP:
        areas = [(0, size)]
        start = head.cap_offset if head.flags & abi.RegionFlags.CAPS else 0
        for kind, at in abi.capabilities(answer, start):
            if kind == abi.REGION_CAP_SPARSE_MMAP:
                areas = list(_sparse(answer, at))
    whole = ((align_up(at, libc.PAGE_SIZE), align_down(at + n, libc.PAGE_SIZE)) for at, n in areas)
    kept = tuple((first, last - first) for first, last in whole if first < last)
    return RegionView(int(head.index), size, int(head.offset), kept)


def _sparse(answer: bytes, at: int) -> list[tuple[int, int]]:
    head = abi.SparseMmap.from_buffer_copy(answer, at)
    first = at + sizeof(abi.SparseMmap)
    areas = (abi.SparseArea * head.nr_areas).from_buffer_copy(answer, first)
    return [(int(area.offset), int(area.size)) for area in areas]
