"""The block model: which blocks of a region are plugged. Pure: no memory, no addresses, no answers.

One byte a block (1 plugged, 0 not), so that judging or changing a range is one memchr- or
memset-like operation over that range, whatever the size of the region.
"""

from __future__ import annotations

from collections.abc import Iterator

from minivmm.spec.virtio_mem import BlockState

_PLUGGED = b"\1"
_UNPLUGGED = b"\0"


class Blocks:
    """`region_size // block_size` blocks, all unplugged at first. Blocks are numbered from 0.

    Every range given must lie inside the region and contain a block; callers have checked that
    (answers.py), hence there is no error to report here.
    """

    def __init__(self, block_size: int, region_size: int) -> None:
        self.block_size = block_size
        self.count = region_size // block_size
        self.plugged_size = 0
        """Bytes in plugged blocks (MEM-D-3)."""
        self._states = bytearray(self.count)

    def state(self, first: int, count: int) -> BlockState:
        """PLUGGED or UNPLUGGED if all `count` blocks from `first` are; MIXED otherwise."""
        plugged = self._states.count(_PLUGGED, first, first + count)
        if plugged == count:
            return BlockState.PLUGGED
        return BlockState.MIXED if plugged else BlockState.UNPLUGGED

    def find_plugged(self, first: int, count: int) -> int | None:
        """The first plugged one of `count` blocks from `first`; None if there is none."""
        at = self._states.find(_PLUGGED, first, first + count)
        return None if at < 0 else at

    def find_unplugged(self, first: int, count: int) -> int | None:
        """The first unplugged one of `count` blocks from `first`; None if there is none."""
        at = self._states.find(_UNPLUGGED, first, first + count)
        return None if at < 0 else at

    def count_plugged(self, first: int, count: int) -> int:
        """How many of `count` blocks from `first` are plugged."""
        return self._states.count(_PLUGGED, first, first + count)

    def plug(self, first: int, count: int) -> None:
        """Plug `count` unplugged blocks from `first`."""
        self._states[first : first + count] = _PLUGGED * count
        self.plugged_size += count * self.block_size

    def unplug(self, first: int, count: int) -> None:
        """Unplug `count` plugged blocks from `first`."""
        self._states[first : first + count] = _UNPLUGGED * count
        self.plugged_size -= count * self.block_size

    def unplug_all(self) -> None:
        """Unplug every block."""
        self._states = bytearray(self.count)
        self.plugged_size = 0

    def plugged_ranges(self, first: int = 0, count: int | None = None) -> Iterator[tuple[int, int]]:
        """(first, count) of every longest run of plugged blocks among `count` from `first`.

        Ascending. All blocks by default, which walks the region.
        """
        return self._ranges(_PLUGGED, _UNPLUGGED, first, count)

    def unplugged_ranges(
        self, first: int = 0, count: int | None = None
    ) -> Iterator[tuple[int, int]]:
        """The same of unplugged blocks."""
        return self._ranges(_UNPLUGGED, _PLUGGED, first, count)

    def _ranges(
        self, wanted: bytes, other: bytes, first: int, count: int | None
    ) -> Iterator[tuple[int, int]]:
        end = self.count if count is None else first + count
        at = self._states.find(wanted, first, end)
        while at >= 0:
            stop = self._states.find(other, at, end)
            if stop < 0:
                stop = end
            yield at, stop - at
            at = self._states.find(wanted, stop, end)
