"""RegionState: the sizes of a device and which of its memory is plugged. No requests, no host.

It is the Occupancy of the region, which is how guest memory learns what may be touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from minivmm.devices.virtio_mem.blocks import Blocks
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.memory.layout import LINUX_BLOCK_MAXIMUM, Window
from minivmm.spec.virtio_mem import BlockState
from minivmm.units import align_up

Range = tuple[int, int]
"""(offset, length) in bytes, inside the region."""


def usable_for(requested: int, block_size: int, region_size: int) -> int:
    """The usable size that fits a requested size, multiple of the block size (reference D.3).

    The headroom holds one block of the largest size in which Linux on x86-64 adds memory, because
    it uses only whole ones; with less, it might silently plug nothing.
    """
    if requested == 0:
        return 0
    unit = max(LINUX_BLOCK_MAXIMUM, block_size)
    return min(region_size, align_up(requested, unit) + unit)


class RegionState:
    """All sizes in bytes. The region lies at `window` in guest physical addresses."""

    def __init__(self, spec: VirtioMemSpec, window: Window) -> None:
        self.window = window
        self.blocks = Blocks(spec.block_size, spec.size)
        self.requested_size = spec.requested_size
        self.usable_region_size = self.wanted_usable()
        self.unpromised = False
        """A driver is at work that did not promise to keep away from unplugged memory."""
        self.migrating = False
        """The machine is on its way to another process: no block is plugged or unplugged."""
        self.leaving: tuple[Range, ...] = ()
        """Plugged memory that the host is just taking back: not to be touched any more."""
        self.on_refused: Callable[[int, int], None] = lambda _offset, _length: None
        """Called when an access of our own devices was refused: offset and length in bytes."""

    @property
    def block_size(self) -> int:
        """Bytes in a block."""
        return self.blocks.block_size

    def wanted_usable(self) -> int:
        """The usable size that fits requested_size."""
        return usable_for(self.requested_size, self.block_size, self.window.size)

    def all_unplugged(self) -> None:
        """Nothing is plugged any more, hence the usable region may shrink (MEM-D-8, MEM-D-41)."""
        self.blocks.unplug_all()
        self.usable_region_size = self.wanted_usable()

    # -- Occupancy -------------------------------------------------------------------------------

    def covers(self, offset: int, length: int) -> bool:
        """Are [offset, offset + length) plugged, all of them, and not just being unplugged?"""
        first = offset // self.block_size
        count = (offset + length - 1) // self.block_size - first + 1
        if count >= 1 and self.blocks.state(first, count) is not BlockState.PLUGGED:
            return False
        return not any(at < offset + length and offset < at + size for at, size in self.leaving)

    def refused(self, offset: int, length: int) -> None:
        """One of our devices wanted what `covers` says is not there."""
        self.on_refused(offset, length)

    def plugged_ranges(self, offset: int, length: int) -> Iterator[Range]:
        """Plugged runs inside [offset, offset + length), which are whole blocks; ascending."""
        size = self.block_size
        for first, count in self.blocks.plugged_ranges(offset // size, length // size):
            yield first * size, count * size

    def unplugged_ranges(self) -> Iterator[Range]:
        """Runs without a plugged block, ascending. Walks the region."""
        size = self.block_size
        for first, count in self.blocks.unplugged_ranges():
            yield first * size, count * size

    @property
    def readable(self) -> int:
        """Bytes at the start that CPUs may read, plugged or not (MEM-D-20)."""
        return self.usable_region_size if self.unpromised else 0
