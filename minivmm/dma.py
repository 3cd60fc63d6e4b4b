"""Which parts of guest memory passed-on devices may use for DMA: all RAM, and what is plugged.

An address of the guest is the same address for its devices. A mapping pins its memory, and cannot
be cut (neither a type 1 IOMMU nor iommufd does that) without being undone as a whole, which would
break transfers to what is left. So:

    RAM              one mapping for each window: it never goes
    plugged memory   one mapping for each block, as the guest may unplug each one alone
    unplugging       one request for each run of blocks, however many mappings that are

Larger blocks mean fewer mappings. What the host allows is checked in dma_limits.py.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from threading import Lock

from minivmm.errors import HostError
from minivmm.memory.guest import Slot
from minivmm.units import format_size
from minivmm.vfio.container import Container

_CAUSES = {
    errno.ENOSPC: "the host has no DMA mapping left: use a larger block-size=",
    errno.EDQUOT: "the host has no DMA mapping left: use a larger block-size=",
    errno.EFAULT: "the host cannot pin it: backing=file works with tmpfs only",
}
"""What to do about an error; ENOMEM has two reasons, see `_explain`."""


class DmaMappings:
    """The LayoutListener, one that pins, which keeps the mappings of one container.

    `blocks` tells the bytes in a block of each sparse region, by its name; `why_no_memory()` says
    what ENOMEM means now. Several regions may be changed at once, by a thread each.
    """

    def __init__(
        self,
        container: Container,
        blocks: Mapping[str, int],
        why_no_memory: Callable[[], str] = lambda: "the host is out of memory",
    ) -> None:
        self._container = container
        self._blocks = blocks
        self._why_no_memory = why_no_memory
        self._lock = Lock()  # for the next two, never held during a system call
        self._mapped: dict[int, int] = {}
        self._size = 0

    @property
    def count(self) -> int:
        """Mappings that there are."""
        return len(self._mapped)

    @property
    def size(self) -> int:
        """Bytes that are mapped, hence pinned."""
        return self._size

    # -- LayoutListener ------------------------------------------------------------------------

    def on_map(self, slot: Slot) -> None:
        """RAM is mapped; of a sparse region nothing is, yet. Raises HostError."""
        if slot.occupancy is None:
            self._map(slot, slot.gpa, slot.region.size)

    def on_plug(self, slot: Slot, offset: int, length: int) -> None:
        """Map each of these blocks, or raise HostError with none of them mapped."""
        block, start = self._blocks[slot.name], slot.gpa + offset
        end = start
        try:
            for gpa in range(start, start + length, block):
                if gpa in self._mapped:  # unmapping it failed once
                    self._unmap(gpa, block)
                self._map(slot, gpa, block)
                end = gpa + block
        except (OSError, HostError):
            if end > start:
                self._unmap(start, end - start)
            raise

    def on_unplug(self, slot: Slot, offset: int, length: int) -> None:
        """Unmap these blocks; OSError, and all is as before, if the host refuses."""
        block, start = self._blocks[slot.name], slot.gpa + offset
        for gpa, size in self._runs(start, length, block):
            self._unmap(gpa, size)

    def on_readable(self, slot: Slot) -> None:
        """Devices may use what is plugged only, whatever CPUs may read."""

    # ------------------------------------------------------------------------------------------

    def mapped(self) -> list[tuple[int, int]]:
        """(gpa, size) of every mapping, by address."""
        with self._lock:
            return sorted(self._mapped.items())

    def inspect(self) -> dict[str, object]:
        """How many mappings there are, how many there may be, and the bytes that they pin."""
        return {"count": self.count, "limit": self._container.limit, "pinned": self.size}

    def _map(self, slot: Slot, gpa: int, size: int) -> None:
        """Raises HostError."""
        hva = slot.region.hva + gpa - slot.gpa
        try:
            self._container.map(gpa, hva, size)
        except OSError as error:
            raise HostError(
                f"{slot.name}: cannot map {format_size(size)} at {gpa:#x} for DMA"
                f" ({error.strerror or error}): {self._explain(error)}"
            ) from error
        with self._lock:
            self._mapped[gpa] = size
            self._size += size

    def _unmap(self, gpa: int, size: int) -> None:
        """Undo the mappings that make up [gpa, gpa + size). Raises OSError, with none undone."""
        self._container.unmap(gpa, size)
        with self._lock:
            end = gpa + size
            while gpa < end:
                gpa += self._mapped.pop(gpa)
            self._size -= size

    def _runs(self, start: int, length: int, block: int) -> Iterator[tuple[int, int]]:
        """(gpa, size) of every longest run of mapped blocks in [start, start + length)."""
        size = 0
        for gpa in range(start, start + length, block):
            if gpa in self._mapped:
                size += block
            elif size:
                yield gpa - size, size
                size = 0
        if size:
            yield start + length - size, size

    def _explain(self, error: OSError) -> str:
        if error.errno == errno.ENOMEM:
            return self._why_no_memory()
        return _CAUSES.get(error.errno or 0, "see the host's kernel log")
