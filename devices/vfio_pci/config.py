"""HostConfig: a device's configuration space, of which some bits are ours and the rest its own.

Ours is what says where things are in the guest, and how it is interrupted. VFIO itself keeps the
rest harmless: it forwards what is known to be safe, and remembers or drops other writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from minivmm.pci.config import ConfigSpace
from minivmm.spec import pci
from minivmm.vfio.abi import Region
from minivmm.vfio.device import VfioDevice

_HIDDEN = frozenset((0x0E, 0x0F, 0x10, 0x13, 0x15, 0x1B, 0x1D))
"""Extended capabilities that need other functions, an IOMMU or BARs that can be resized: ARI, ATS,
SR-IOV, PRI, resizable BARs, PASID, DPC."""
_POWER_STATE = 0b11
"""Bits of the power management control register (PCI PM 3.2.4): D0 is 0."""
_NOTHING = 0xFFFF_FFFF
_LINK = 0xFFF0_0000
"""Bits of an extended capability's header that say where the next one is."""


class HostConfig(ConfigSpace):
    """The space of `device`: 256 bytes, or 4096 with extended capabilities. Raises OSError."""

    def __init__(self, device: VfioDevice) -> None:
        self._device = device
        self._region = device.region(Region.CONFIG)
        self._ours = bytearray(pci.CONFIG_SIZE)
        self._told = bytearray(pci.CONFIG_SIZE)
        self._power: int | None = None
        self._claiming = False
        self.gone = False
        """The device was taken away: everything reads as ones."""
        content = b"".join(self._fetch(at, 4) for at in range(0, pci.CONFIG_SIZE, 4))
        super().__init__(pci.Header.parse(content[: pci.Header.SIZE]))
        self.declare(pci.Header.SIZE, content[pci.Header.SIZE :])
        self._claiming = True
        self._extended = list(self._find_extended())
        self._hidden = frozenset(at for kind, at in self._extended if kind in _HIDDEN)

    def declare(self, offset: int, data: bytes, writable: bytes = b"") -> None:
        """These bytes are ours from now on: the guest reads `data`, as it has changed it."""
        super().declare(offset, data, writable)
        if self._claiming:
            self._ours[offset : offset + len(data)] = b"\xff" * len(data)

    def tell_device(self, offset: int, size: int) -> None:
        """Have the device hear of what the guest writes to these bytes, though they are ours."""
        self._told[offset : offset + size] = b"\xff" * size

    def follow_power(self, control: int) -> None:
        """The power state is in the low bits of offset `control`: the device's, and noted here."""
        self._claiming = False
        self.declare(control, bytes(self._bytes[control : control + 1]), bytes([_POWER_STATE]))
        self._claiming = True
        self._power = control

    @property
    def asleep(self) -> bool:
        """Is it in a power state in which it answers nothing but configuration accesses?"""
        return self._power is not None and bool(self._bytes[self._power] & _POWER_STATE)

    def wake(self) -> None:
        """Have the device in the power state D0, as it is after reset()."""
        if self._power is not None:
            self.send(self._power, 1, self._pread(self._power, 1) & ~_POWER_STATE)

    def capabilities(self) -> Iterator[tuple[int, int]]:
        """(id, offset) of each capability, as the device links them."""
        at, left = self.get(pci.CAPABILITIES, 1) & ~3, pci.CONFIG_SIZE // 4
        if not self.get(pci.STATUS, 2) & pci.Status.CAPABILITY_LIST:
            return
        while at >= pci.FIRST_CAPABILITY and left:
            yield self.get(at, 1), at
            at, left = self.get(at + 1, 1) & ~3, left - 1

    def read(self, offset: int, size: int) -> int:
        """Guest read: our bytes from here, the others from the device."""
        if self.gone:
            return (1 << 8 * size) - 1
        if offset >= pci.CONFIG_SIZE:
            return self._read_extended(offset, size)
        own = super().read(offset, size)
        ours = int.from_bytes(self._ours[offset : offset + size], "little")
        if ours == (1 << 8 * size) - 1:
            return own
        return own & ours | self._pread(offset, size) & ~ours

    def write(self, offset: int, size: int, value: int) -> None:
        """Guest write.

        Nobody may reach the device's memory while it does not answer: windows close before the
        device hears of it, and open after.
        """
        if self.gone:
            return
        if offset >= pci.CONFIG_SIZE:
            if offset + size <= self._region.size and not self._in_hidden(offset):
                self.send(offset, size, value)
        elif self._closes(offset, size, value):
            super().write(offset, size, value)
            self._pass_on(offset, size, value)
        else:
            self._pass_on(offset, size, value)
            super().write(offset, size, value)

    def send(self, offset: int, size: int, value: int) -> None:
        """Write to the device itself; one that does not take it has gone wrong, or away."""
        with suppress(OSError):
            self._device.write(self._region, offset, size, value)

    def _find_extended(self) -> Iterator[tuple[int, int]]:
        """(id, offset) of each extended capability (PCIe 7.9.3)."""
        at, left = pci.CONFIG_SIZE, self._region.size // 4
        while pci.CONFIG_SIZE <= at < self._region.size and left:
            header = self._pread(at, 4)
            if header in (0, _NOTHING):
                return
            yield header & 0xFFFF, at
            at, left = header >> 20 & ~3, left - 1

    def _closes(self, offset: int, size: int, value: int) -> bool:
        """Does this write end the device's answering to memory accesses?"""
        if offset <= pci.COMMAND < offset + size:
            return not value >> 8 * (pci.COMMAND - offset) & pci.Command.MEMORY_SPACE
        if self._power is not None and offset <= self._power < offset + size:
            return bool(value >> 8 * (self._power - offset) & _POWER_STATE)
        return False

    def _pass_on(self, offset: int, size: int, value: int) -> None:
        """Send what is not ours alone, in one piece if that is all of it."""
        passing = [
            at for at in range(offset, offset + size) if not self._ours[at] or self._told[at]
        ]
        if len(passing) == size:
            self.send(offset, size, value)
            return
        for at in passing:
            self.send(at, 1, value >> 8 * (at - offset))

    def _read_extended(self, offset: int, size: int) -> int:
        if offset + size > self._region.size:
            return 0
        value = self._pread(offset, size)
        if offset & ~3 not in self._hidden:
            return value
        return value & _LINK >> 8 * (offset & 3)  # it stays in the chain, without a name

    def _in_hidden(self, offset: int) -> bool:
        """Does `offset` belong to a hidden capability: is the last one before it hidden?"""
        before = [at for _, at in self._extended if at <= offset]
        return bool(before) and max(before) in self._hidden

    def _pread(self, offset: int, size: int) -> int:
        """What the device has there; ones if it does not answer."""
        try:
            return self._device.read(self._region, offset, size)
        except OSError:
            return (1 << 8 * size) - 1

    def _fetch(self, offset: int, size: int) -> bytes:
        return self._device.read(self._region, offset, size).to_bytes(size, "little")
