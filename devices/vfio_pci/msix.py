"""The MSI-X table and pending bits as the guest sees them, inside the device's own BARs.

The host has programmed the device's table, so the guest's accesses to it end here.
"""

from __future__ import annotations

from minivmm.devices.vfio_pci.config import HostConfig
from minivmm.devices.vfio_pci.interrupts import Interrupts, Message
from minivmm.spec import pci
from minivmm.units import align_up

_ENTRY = pci.MsixEntry.SIZE
_ENTRY_CONTROL = pci.MsixEntry.OFFSETS["control"]
_CONTROL = pci.MsixCapability.OFFSETS["control"]
_WRITABLE = pci.MsixControl.ENABLE | pci.MsixControl.FUNCTION_MASK
_BAR_BITS = 0b111
_VECTORS = 0x7FF


class MsixTable:
    """The capability at `offset` of `config`; a BusDevice, the table as it lies in its BAR."""

    def __init__(self, config: HostConfig, offset: int, interrupts: Interrupts) -> None:
        self._config = config
        self._control_at = offset + _CONTROL
        self._interrupts = interrupts
        found = pci.MsixCapability.parse(
            config.get(offset, pci.MsixCapability.SIZE).to_bytes(pci.MsixCapability.SIZE, "little")
        )
        self.vectors = (found.control & _VECTORS) + 1
        self.bar, self.offset = found.table & _BAR_BITS, found.table & ~_BAR_BITS
        """Where the table is: BAR, and offset in it."""
        self.pba_bar, self.pba_offset = found.pba & _BAR_BITS, found.pba & ~_BAR_BITS
        self.pba = PendingBits(self)
        self._table = bytearray()
        self.reset()
        config.declare(
            self._control_at,
            (self.vectors - 1).to_bytes(2, "little"),
            int(_WRITABLE).to_bytes(2, "little"),
        )

    @property
    def size(self) -> int:
        """Bytes of the table."""
        return _ENTRY * self.vectors

    @property
    def enabled(self) -> bool:
        """Does the guest use it?"""
        return bool(self._control & pci.MsixControl.ENABLE)

    def reset(self) -> None:
        """As after power-on: every entry masked. The control register is the configuration's."""
        self._table = bytearray(pci.MsixEntry().build() * self.vectors)

    def settle(self) -> None:
        """Bring all vectors in line with the table; the guest wrote the control register."""
        for vector in range(self.vectors):
            self._settle(vector)

    def read(self, offset: int, size: int) -> int:
        """The table, as the guest wrote it."""
        return int.from_bytes(self._table[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Aligned pieces of 4 or 8 bytes (PCI 6.8.2); others are dropped."""
        if size not in (4, 8) or offset % size or offset + size > len(self._table):
            return
        self._table[offset : offset + size] = value.to_bytes(size, "little")
        if self.enabled:
            self._settle(offset // _ENTRY)

    def due(self, vector: int) -> bool:
        """Is the message of `vector` pending?"""
        return self._interrupts.due(vector)

    def inspect(self) -> dict[str, object]:
        """Masks, and the entries that are not masked."""
        return {
            "enabled": self.enabled,
            "vectors": self.vectors,
            "unmasked": {
                vector: "address {:#x} data {:#x}".format(*self._message(vector))
                for vector in range(self.vectors)
                if not self._masked(vector)
            },
        }

    @property
    def _control(self) -> int:
        return self._config.get(self._control_at, 2)

    def _settle(self, vector: int) -> None:
        if self._control & _WRITABLE == pci.MsixControl.ENABLE and not self._masked(vector):
            self._interrupts.send(vector, self._message(vector))
        else:
            self._interrupts.hold(vector)

    def _masked(self, vector: int) -> bool:
        return bool(self._table[_ENTRY * vector + _ENTRY_CONTROL] & pci.MSIX_ENTRY_MASKED)

    def _message(self, vector: int) -> Message:
        start = _ENTRY * vector
        address = int.from_bytes(self._table[start : start + 8], "little")
        return address, int.from_bytes(self._table[start + 8 : start + 12], "little")


class PendingBits:
    """The BusDevice of the pending bit array: a bit for each vector, read-only."""

    def __init__(self, table: MsixTable) -> None:
        self._table = table

    @property
    def size(self) -> int:
        """Bytes: it consists of 64-bit words."""
        return align_up(self._table.vectors, 64) // 8

    def read(self, offset: int, size: int) -> int:
        """Bits of the vectors that `size` bytes at `offset` stand for."""
        first = 8 * offset
        vectors = range(first, min(first + 8 * size, self._table.vectors))
        return sum(1 << vector - first for vector in vectors if self._table.due(vector))

    def write(self, offset: int, size: int, value: int) -> None:
        """Dropped."""
