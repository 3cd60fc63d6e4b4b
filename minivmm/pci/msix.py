"""MSI-X of one function: table, pending bits, both masks, and the messages that leave.

Which event uses which vector is for virtio/pci.py; how a message reaches a CPU is irq.py's.
"""

from __future__ import annotations

from typing import Any

from minivmm.irq import InterruptController, MsiRoute
from minivmm.pci.function import PciFunction
from minivmm.saved import require
from minivmm.spec import pci

MAX_VECTORS = 128
"""What the BAR layout below has room for; far more than any device model has events."""

_TABLE_OFFSET = 0
_PBA_OFFSET = pci.MsixEntry.SIZE * MAX_VECTORS
_BAR_SIZE = 4096
_CONTROL = pci.MsixCapability.OFFSETS["control"]
# Plain integers: every interrupt looks at them, and operations on enum members cost a microsecond.
_ENABLE = int(pci.MsixControl.ENABLE)
_WRITABLE_CONTROL = _ENABLE | int(pci.MsixControl.FUNCTION_MASK)
_ENTRY_CONTROL = pci.MsixEntry.OFFSETS["control"]


class Msix:
    """The MSI-X capability of `function`, with a 4 KiB BAR of its own at `bar_index`."""

    def __init__(
        self,
        function: PciFunction,
        vectors: int,
        interrupts: InterruptController,
        *,
        bar_index: int,
    ) -> None:
        if not 1 <= vectors <= MAX_VECTORS:
            raise ValueError(f"{vectors} MSI-X vectors: 1 to {MAX_VECTORS} are possible")
        self.vectors = vectors
        self._function = function
        self._interrupts = interrupts
        self._table = bytearray()
        self._pending = 0
        self._routes: dict[int, MsiRoute] = {}
        self._routed: dict[int, bytes] = {}
        """By vector: the table entry, without its control, that its route was made of."""
        capability = pci.MsixCapability(
            control=vectors - 1, table=_TABLE_OFFSET | bar_index, pba=_PBA_OFFSET | bar_index
        )
        writable = bytes(_CONTROL) + _WRITABLE_CONTROL.to_bytes(2, "little")
        self._control_offset = function.config.add_capability(capability, writable) + _CONTROL
        function.config.watch(self._control_offset, 2, after_write=self._control_written)
        function.add_bar(bar_index, _BAR_SIZE, self, name="msix")
        self.reset()

    @property
    def enabled(self) -> bool:
        """Does the function use MSI-X (instead of its pin)?"""
        return self._control & _ENABLE != 0

    def deliver(self, vector: int) -> None:
        """Send the message of `vector` or, while something masks it, remember that it is due."""
        if vector >= self.vectors:
            return
        self._pending |= 1 << vector
        self.flush()

    def flush(self) -> None:
        """Send whatever is pending and not masked any more, each message once."""
        due = self._pending
        if not due or not self._function.bus_master:
            return
        if self._control & _WRITABLE_CONTROL != _ENABLE:
            return
        while due:
            vector = (due & -due).bit_length() - 1
            due &= due - 1
            if not self._masked(vector):
                self._pending &= ~(1 << vector)
                self._send(vector)

    def is_due(self, vector: int) -> bool:
        """Is the message of `vector` pending?"""
        return bool(self._pending >> vector & 1)

    def forget(self, vector: int) -> None:
        """Drop the message of `vector`: nothing is mapped to it any more."""
        self._pending &= ~(1 << vector)

    def forget_pending(self) -> None:
        """Drop messages that are due: the device behind them was reset (GEN-D-5)."""
        self._pending = 0

    def reset(self) -> None:
        """As after power-on: every entry masked, nothing pending."""
        self._table = bytearray(pci.MsixEntry().build() * self.vectors)
        self._pending = 0

    def read(self, offset: int, size: int) -> int:
        """BAR read: table and pending bits in aligned pieces of 4 or 8 bytes, else 0."""
        if size not in (4, 8) or offset % size:
            return 0
        if offset < _PBA_OFFSET:
            return int.from_bytes(self._table[offset : offset + size], "little")
        return self._pending >> 8 * (offset - _PBA_OFFSET) & ((1 << 8 * size) - 1)

    def write(self, offset: int, size: int, value: int) -> None:
        """BAR write: the table in aligned pieces of 4 or 8 bytes; pending bits are read-only."""
        if size not in (4, 8) or offset % size or offset + size > len(self._table):
            return
        self._table[offset : offset + size] = value.to_bytes(size, "little")
        self.flush()

    def save(self) -> dict[str, object]:
        """Values of MSIX; the control register is in configuration space."""
        return {"table": bytes(self._table), "pending": self._pending}

    def judge(self, saved: Any) -> None:
        """Raises BadState unless `saved` can be of this table."""
        name, size, vectors = self._function.name, len(saved.table), self.vectors
        require(size == len(self._table), name, "MSI-X table", size, f"{vectors} vectors, 16 each")
        due = f"{saved.pending:#x}"
        require(not saved.pending >> vectors, name, "MSI-X pending", due, f"{vectors} vectors")

    def load(self, saved: Any) -> None:
        """Take over what was judged. Nothing is sent before the next `flush`."""
        self._table[:] = saved.table
        self._pending = saved.pending

    def inspect(self) -> dict[str, object]:
        """Masks, pending bits, and the entries that are not masked."""
        return {
            "enabled": self.enabled,
            "function-mask": bool(self._control & pci.MsixControl.FUNCTION_MASK),
            "vectors": self.vectors,
            "pending": [v for v in range(self.vectors) if self._pending >> v & 1],
            "unmasked": {
                v: "address {:#x} data {:#x}".format(*self._message(v))
                for v in range(self.vectors)
                if not self._masked(v)
            },
        }

    @property
    def _control(self) -> int:
        return self._function.config.get(self._control_offset, 2)

    def _control_written(self) -> None:
        self._function.on_msix_control()
        self.flush()

    def _masked(self, vector: int) -> bool:
        control = self._table[pci.MsixEntry.SIZE * vector + _ENTRY_CONTROL]
        return bool(control & pci.MSIX_ENTRY_MASKED)

    def _message(self, vector: int) -> tuple[int, int]:
        """(64-bit address, 32-bit data) as the guest wrote them."""
        start = pci.MsixEntry.SIZE * vector
        address = int.from_bytes(self._table[start : start + 8], "little")
        return address, int.from_bytes(self._table[start + 8 : start + 12], "little")

    def _send(self, vector: int) -> None:
        """Route (a slow operation: only if the guest changed the message) and signal."""
        route = self._routes.get(vector)
        if route is None:
            route = self._routes[vector] = self._interrupts.msi()
        start = pci.MsixEntry.SIZE * vector
        entry = bytes(self._table[start : start + _ENTRY_CONTROL])
        if self._routed.get(vector) != entry:
            route.route(*self._message(vector))
            self._routed[vector] = entry
        route.signal()
