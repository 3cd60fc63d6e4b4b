"""A PCI device as VFIO hands it out, without one: a file, and answers to requests on it.

The host around it, and how to use both, is in fake_vfio.py.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from ctypes import sizeof
from dataclasses import dataclass, field
from typing import Any

from minivmm.vfio import abi
from minivmm.vfio.abi import Irq
from minivmm.vfio.ioctl import Ioctl

CONFIG_REGION = 7
_STRIDE = 1 << 34
"""Bytes between regions in a device's descriptor (the kernel's are 1 << 40)."""


@dataclass
class FakePciDevice:
    """A device; what happens to it is in `triggers`, `resets` and its file."""

    name: str
    config: bytearray = field(default_factory=lambda: bytearray(256))
    bars: dict[int, int] = field(default_factory=dict)
    """Size in bytes of each BAR."""
    sparse: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """(offset, size) of what may be mapped of a BAR; all of those that are not here."""
    irqs: dict[Irq, int] = field(default_factory=lambda: {Irq.INTX: 1})
    resizable: bool = False
    """May MSI-X vectors be added later?"""
    vectors: int = 1 << 11
    """How many the host has to give."""
    can_reset: bool = True
    can_reset_bus: bool = False
    is_pci: bool = True
    resets: list[str] = field(default_factory=list)
    triggers: dict[tuple[Irq, int], int] = field(default_factory=dict)
    """Eventfd of each interrupt that is switched on; -1 is silent."""
    unmask: int = -1
    """Eventfd that unmasks the pin."""
    bound: bool = False
    """To iommufd."""
    file: int = -1

    def open(self) -> int:
        """A descriptor of the device."""
        if self.file < 0:
            self.file = os.memfd_create(self.name)
            self.fill()
        return os.dup(self.file)

    def fill(self) -> None:
        """Give its file the regions."""
        os.ftruncate(self.file, _STRIDE * (CONFIG_REGION + 1))
        os.pwrite(self.file, bytes(self.config), CONFIG_REGION * _STRIDE)

    def peek(self, region: int, offset: int, size: int) -> int:
        """What the device has in a region."""
        return int.from_bytes(os.pread(self.file, size, region * _STRIDE + offset), "little")

    def poke(self, region: int, offset: int, size: int, value: int) -> None:
        """Change what it has."""
        os.pwrite(self.file, value.to_bytes(size, "little"), region * _STRIDE + offset)

    def interrupt(self, kind: Irq, vector: int = 0) -> None:
        """The device interrupts. Raises KeyError if that is not switched on."""
        os.eventfd_write(self.triggers[kind, vector], 1)

    @property
    def kinds(self) -> set[Irq]:
        """Kinds of interrupts that are switched on."""
        return {kind for kind, _ in self.triggers}


class DeviceRequests:
    """What `device` answers to requests on its descriptor."""

    def __init__(self, device: FakePciDevice) -> None:
        self._device = device

    def answer(self, request: int, memory: Any) -> int:
        """Raises OSError for what is refused."""
        ways: dict[int, Callable[[Any], int]] = {
            Ioctl.DEVICE_GET_INFO: self._info,
            Ioctl.DEVICE_GET_REGION_INFO: self._region,
            Ioctl.DEVICE_GET_IRQ_INFO: self._irq,
            Ioctl.DEVICE_SET_IRQS: self._set_irqs,
            Ioctl.DEVICE_RESET: self._reset,
            Ioctl.DEVICE_PCI_HOT_RESET: self._reset_bus,
        }
        refuse_unless(request in ways, errno.ENOTTY)
        return ways[request](memory)

    def _info(self, memory: Any) -> int:
        info = abi.DeviceInfo.from_buffer(memory)
        info.flags = (abi.DeviceFlags.PCI if self._device.is_pci else 0) | (
            abi.DeviceFlags.RESET if self._device.can_reset else 0
        )
        info.num_regions, info.num_irqs = CONFIG_REGION + 1, len(Irq)
        return 0

    def _region(self, memory: Any) -> int:
        device, info = self._device, abi.RegionInfo.from_buffer(memory)
        index, room, begin = int(info.index), int(info.argsz), sizeof(abi.RegionInfo)
        size = len(device.config) if index == CONFIG_REGION else device.bars.get(index, 0)
        info.offset, info.size = index * _STRIDE, size
        info.flags = int(abi.RegionFlags.READ | abi.RegionFlags.WRITE)
        if index in device.bars:
            info.flags |= int(abi.RegionFlags.MMAP)
        if index in device.sparse:
            areas = device.sparse[index]
            tail = struct.pack("=HHIII", abi.REGION_CAP_SPARSE_MMAP, 1, 0, len(areas), 0)
            tail += b"".join(struct.pack("=QQ", *area) for area in areas)
            info.flags |= int(abi.RegionFlags.CAPS)
            info.argsz = begin + len(tail)
            if room >= begin + len(tail):
                info.cap_offset = begin
                ctypes.memmove(ctypes.addressof(memory) + begin, tail, len(tail))
        return 0

    def _irq(self, memory: Any) -> int:
        info = abi.IrqInfo.from_buffer(memory)
        kind = Irq(info.index)
        info.count = self._device.irqs.get(kind, 0)
        info.flags = int(abi.IrqFlags.EVENTFD)
        if kind != Irq.MSIX or not self._device.resizable:
            info.flags |= int(abi.IrqFlags.NORESIZE)
        return 0

    def _set_irqs(self, memory: Any) -> int:
        """One of pin, MSI and MSI-X at a time, as vfio-pci has it."""
        device, wish = self._device, abi.IrqSet.from_buffer(memory)
        kind, fds = Irq(wish.index), struct.unpack_from(f"={wish.count}i", memory, sizeof(wish))
        if not wish.flags & abi.SetFlags.DATA_EVENTFD:
            device.triggers = {key: fd for key, fd in device.triggers.items() if key[0] != kind}
            return 0
        if wish.flags & abi.SetFlags.UNMASK:
            device.unmask = fds[0]
            return 0
        refuse_unless(wish.start + wish.count <= device.irqs.get(kind, 0), errno.EINVAL)
        exclusive = {Irq.INTX, Irq.MSI, Irq.MSIX}
        others = device.kinds & exclusive - {kind} if kind in exclusive else set()
        refuse_unless(not others, errno.EINVAL)
        known = kind in device.kinds
        if known and kind == Irq.MSIX and not device.resizable:
            inside = all((kind, wish.start + n) in device.triggers for n in range(wish.count))
            refuse_unless(inside, errno.EINVAL)
        if kind in (Irq.MSI, Irq.MSIX) and wish.start + wish.count > device.vectors:
            return device.vectors
        device.triggers |= {(kind, wish.start + n): fd for n, fd in enumerate(fds)}
        return 0

    def _reset(self, memory: Any) -> int:
        refuse_unless(self._device.can_reset, errno.EINVAL)
        self._device.resets.append("function")
        return 0

    def _reset_bus(self, memory: Any) -> int:
        refuse_unless(self._device.can_reset_bus, errno.EINVAL)
        self._device.resets.append("bus")
        return 0


def refuse_unless(condition: bool, code: int) -> None:
    """Raises OSError with that errno unless `condition` holds."""
    if not condition:
        raise OSError(code, os.strerror(code))
