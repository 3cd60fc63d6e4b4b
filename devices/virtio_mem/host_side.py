"""What plugging and unplugging mean for host memory and for those who share guest memory.

    plug:    allow access -> populate (if asked) -> pin (DMA mappings) -> show (memslots)
    unplug:  hide -> forbid access -> unpin -> discard

Each is a Work: `prepare` and `finish` are quick and need the lock, `aside` may take long and needs
none. Whatever fails, `undo` brings back what was there before; block states are not its business.
Memory is hidden before it is discarded, so that nobody populates it again (reference H-10).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from minivmm.devices.virtio_mem.state import Range
from minivmm.memory.guest import GuestMemory, Slot
from minivmm.memory.region import Access, Region


def _nothing() -> None:
    pass


@dataclass(slots=True)
class Work:
    """Steps, in order; any may raise OSError or HostError, after which `undo` is called."""

    length: int
    """Bytes that `aside` deals with; 0 if it does nothing."""
    leaving: tuple[Range, ...] = ()
    """What must not be touched any more, from `prepare` on."""
    prepare: Callable[[], None] = _nothing
    aside: Callable[[], None] = _nothing
    finish: Callable[[], None] = _nothing
    undo: Callable[[], None] = _nothing


class Host(Protocol):
    """Who knows what a request costs the host."""

    def plug(self, offset: int, length: int) -> Work:
        """Give [offset, offset + length) to the guest."""

    def unplug(self, shown: Sequence[Range], whole: Range) -> Work:
        """Take `shown` (what is plugged) from the guest, and discard `whole`, which contains it."""


class HostSide:
    """The host side of `slot`'s region: `populate` on plug, and keep unplugged memory guarded.

    What is to be pinned is populated first in any case: pinning would take the host's memory
    anyhow, and being short of it shows best where nothing else has happened yet.
    """

    def __init__(self, memory: GuestMemory, slot: Slot, *, populate: bool, guarded: bool) -> None:
        self._memory = memory
        self._slot = slot
        self._populate = populate
        self.guarded = guarded
        """Is unplugged memory protected?"""
        self._readable = 0

    @property
    def populates(self) -> bool:
        """Is host memory taken when blocks are plugged?"""
        return self._populate or self._memory.pinned

    @property
    def _region(self) -> Region:
        return self._slot.region

    def plug(self, offset: int, length: int) -> Work:
        """Give [offset, offset + length) to the guest."""

        pinned = False

        def aside() -> None:
            nonlocal pinned
            if self.populates:
                self._region.populate(offset, length)
            self._memory.pin(self._slot, offset, length)
            pinned = True

        def finish() -> None:
            self._memory.plug(self._slot, offset, length)

        def undo() -> None:
            if pinned:
                self._memory.unpin(self._slot, offset, length)
            with suppress(OSError):  # unguarded for once; the next unplug of it tries again
                self._forbid(offset, length)
            if self.populates:
                self._region.discard(offset, length)

        return Work(
            length if self.populates else 0,
            prepare=lambda: self._allow(offset, length),
            aside=aside,
            finish=finish,
            undo=undo,
        )

    def unplug(self, shown: Sequence[Range], whole: Range) -> Work:
        """Take `shown` (what is plugged) from the guest, and discard `whole`, which contains it."""
        hidden: list[Range] = []
        unpinned: list[Range] = []

        def prepare() -> None:
            for piece in shown:
                self._memory.unplug(self._slot, *piece)
                hidden.append(piece)
            for piece in shown:
                self._forbid(*piece)

        def aside() -> None:
            for piece in shown:
                self._memory.unpin(self._slot, *piece)
                unpinned.append(piece)
            self._region.discard(*whole)

        def undo() -> None:
            for piece in hidden:
                self._allow(*piece)
            for piece in unpinned:
                self._memory.pin(self._slot, *piece)
            for piece in hidden:
                self._memory.plug(self._slot, *piece)

        return Work(
            whole[1],
            leaving=tuple(shown),
            prepare=prepare,
            aside=aside,
            undo=undo,
        )

    def guard(self, readable: int, unplugged: Iterable[Range]) -> None:
        """CPUs may from now on read the first `readable` bytes and no more of what is unplugged.

        `unplugged` is all of it. Raises OSError if the host refuses (MEM-D-20).
        """
        self._readable = readable
        if self.guarded:
            for piece in unplugged:
                self._forbid(*piece)
        self._memory.readable_changed(self._slot)

    def _allow(self, offset: int, length: int) -> None:
        if self.guarded:
            self._region.protect(offset, length, Access.ALL)

    def _forbid(self, offset: int, length: int) -> None:
        """Unplugged memory cannot be written, nor read where nobody has a right to."""
        if not self.guarded:
            return
        readable = min(max(self._readable - offset, 0), length)
        if readable:
            self._region.protect(offset, readable, Access.READ)
        if readable < length:
            self._region.protect(offset + readable, length - readable, Access.NONE)
