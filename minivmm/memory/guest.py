"""Guest physical address -> bytes: the only bounds check between the guest and host memory.

A region may be sparse (virtio-mem): only what its Occupancy calls plugged is RAM, so that no ring,
buffer or loader can re-populate what was given back (reference H, trap 10). Whoever shows guest
memory to somebody else, to KVM as memslots or to an IOMMU as DMA mappings, is a LayoutListener.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

from minivmm.errors import GuestAddressError
from minivmm.memory.region import PAGE_SIZE, Region
from minivmm.spec.record import R, Record
from minivmm.units import align_down, align_up


class Occupancy(Protocol):
    """Which bytes of a sparse region are plugged. Offsets and lengths are bytes in the region."""

    def covers(self, offset: int, length: int) -> bool:
        """Are [offset, offset + length) plugged, all of them?"""

    def plugged_ranges(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """(offset, length) of every longest plugged run inside [offset, offset + length)."""

    def refused(self, offset: int, length: int) -> None:
        """An access of ours to these bytes was refused, as not all of them are plugged."""

    @property
    def readable(self) -> int:
        """Bytes at the start of the region that CPUs may read, plugged or not (MEM-D-20)."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A region at guest physical address `gpa`; `occupancy` is None for ordinary RAM."""

    gpa: int
    region: Region
    name: str
    occupancy: Occupancy | None = None
    end: int = field(init=False)
    """First guest physical address after the region."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "end", self.gpa + self.region.size)


class LayoutListener(Protocol):
    """Told of every region and of every change of what is plugged (docs/listeners.md).

    Ordinary RAM: on_map is all. Sparse regions: nothing of them is plugged at on_map; what is
    plugged by the time of a subscription is told by on_plug right after it. The lock is held,
    unless the listener pins (GuestMemory.subscribe).
    """

    def on_map(self, slot: Slot) -> None:
        """`slot` is now part of the address space."""

    def on_plug(self, slot: Slot, offset: int, length: int) -> None:
        """The guest is about to be given these bytes; raising OSError or HostError refuses."""

    def on_unplug(self, slot: Slot, offset: int, length: int) -> None:
        """These bytes, all told of by on_plug, are about to be discarded.

        Must not raise; one that pins may refuse by OSError or HostError, with nothing changed.
        """

    def on_readable(self, slot: Slot) -> None:
        """`slot.occupancy.readable` changed. Must not raise."""


class GuestMemory:
    """The guest physical address space: non-overlapping regions of RAM."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._slots: list[Slot] = []
        self._near: Slot | None = None
        """The region that was looked for last, often the next one as well."""
        self._listeners: list[LayoutListener] = []
        self._pinners: list[LayoutListener] = []

    def add(
        self, gpa: int, region: Region, *, name: str, occupancy: Occupancy | None = None
    ) -> Slot:
        """Put `region` at `gpa` (bytes, page aligned). Raises ValueError if it overlaps another."""
        slot = Slot(gpa, region, name, occupancy)
        for other in self._slots:
            if other.gpa < slot.end and gpa < other.end:
                raise ValueError(f"guest memory {name} at {gpa:#x} overlaps {other.name}")
        at = bisect_right(self._starts, gpa)
        self._starts.insert(at, gpa)
        self._slots.insert(at, slot)
        for listener in (*self._listeners, *self._pinners):
            listener.on_map(slot)
        return slot

    def subscribe(self, listener: LayoutListener, *, pins: bool = False) -> None:
        """Tell `listener` of all regions and plugged ranges so far, and of every later change.

        One that `pins` holds on to the pages themselves, as DMA mappings do: nobody may put others
        in their place while it has them. That takes time, so it is told of what is plugged and
        unplugged aside of the lock, from one thread for each region. Raises what the listener
        raises (OSError, HostError) if it cannot take what is there.
        """
        for slot in self._slots:
            listener.on_map(slot)
            if slot.occupancy is not None:
                for offset, length in slot.occupancy.plugged_ranges(0, slot.region.size):
                    listener.on_plug(slot, offset, length)
                listener.on_readable(slot)
        (self._pinners if pins else self._listeners).append(listener)

    @property
    def pinned(self) -> bool:
        """Does somebody hold on to the pages of what is RAM or plugged?"""
        return bool(self._pinners)

    def pin(self, slot: Slot, offset: int, length: int) -> None:
        """Before plug(): show bytes of a sparse region to those who pin, or to none of them.

        Needs no lock. Raises OSError or HostError of the first one that refuses.
        """
        _show(self._pinners, slot, offset, length)

    def unpin(self, slot: Slot, offset: int, length: int) -> None:
        """After unplug(), before they are discarded: nobody holds on to these bytes any more.

        Needs no lock. Raises OSError or HostError of the first one that refuses; the others hold
        on as well then.
        """
        if not self._pinners:
            return
        with ExitStack() as undo:
            for listener in reversed(self._pinners):
                listener.on_unplug(slot, offset, length)
                undo.callback(listener.on_plug, slot, offset, length)
            undo.pop_all()

    def plug(self, slot: Slot, offset: int, length: int) -> None:
        """Show bytes of a sparse region to every listener that does not pin, or to none.

        Raises OSError or HostError of the first listener that refuses; the others are told back.
        """
        _show(self._listeners, slot, offset, length)

    def unplug(self, slot: Slot, offset: int, length: int) -> None:
        """Take bytes of a sparse region away from every listener, the last one first."""
        for listener in reversed(self._listeners):
            listener.on_unplug(slot, offset, length)

    def readable_changed(self, slot: Slot) -> None:
        """Tell every listener that `slot.occupancy.readable` changed."""
        for listener in (*self._listeners, *self._pinners):
            listener.on_readable(slot)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """All regions, by address."""
        return tuple(self._slots)

    def view(self, gpa: int, length: int) -> memoryview:
        """Writable, zero-copy view of `length` bytes at `gpa` inside one region.

        Raises GuestAddressError if any byte is not RAM (never wraps, never cuts short).
        """
        slot = self._find(gpa)
        if slot is None or length < 0 or gpa + length > slot.end:
            raise GuestAddressError(gpa, length, "not in guest RAM")
        if slot.occupancy is not None:
            self._check_plugged(slot, gpa, length)
        return slot.region.view(gpa - slot.gpa, length)

    def lender(self, gpa: int) -> Region | None:
        """The region with views of RAM at `gpa` that may be kept while Region.lends.

        None where memory can be unplugged.
        """
        slot = self._find(gpa)
        return slot.region if slot is not None and slot.occupancy is None else None

    def peek(self, gpa: int, length: int) -> memoryview:
        """`length` bytes at `gpa` to be read at once: a view, or a copy if they cross regions.

        Raises GuestAddressError.
        """
        slot = self._find(gpa)
        if slot is None or length < 0:
            raise GuestAddressError(gpa, length, "not in guest RAM")
        if gpa + length > slot.end:
            pieces = self._pieces(gpa, length)
            return memoryview(b"".join(self.peek(at, size) for at, size in pieces))
        if slot.occupancy is not None:
            self._check_plugged(slot, gpa, length)
        return slot.region.peek(gpa - slot.gpa, length)

    def check(self, gpa: int, length: int) -> None:
        """Raises GuestAddressError unless all of [`gpa`, `gpa` + `length`) may be accessed now."""
        slot = self._find(gpa)
        if slot is not None and gpa + length <= slot.end:
            if slot.occupancy is not None:
                self._check_plugged(slot, gpa, length)
            return
        for at, size in self._pieces(gpa, length):
            self.check(at, size)

    def read(self, gpa: int, length: int) -> bytes:
        """Copy of `length` bytes at `gpa`; may cross regions. Raises GuestAddressError."""
        return bytes(self.peek(gpa, length)) if length > 0 else b""

    def write(self, gpa: int, data: bytes) -> None:
        """Store `data` at `gpa`; may cross regions. Raises GuestAddressError and writes nothing."""
        slot = self._find(gpa)
        if slot is not None and gpa + len(data) <= slot.end:
            self.view(gpa, len(data))[:] = data
            return
        views = [self.view(at, size) for at, size in self._pieces(gpa, len(data))]
        done = 0
        for view in views:
            view[:] = data[done : done + len(view)]
            done += len(view)

    def discard(self, gpa: int, length: int) -> int:
        """Give [`gpa`, `gpa` + `length`) (bytes) of one region back to the host; bytes that were.

        What is RAM stays so, and reads as zeroes. Regions of huge pages are left as they are: the
        guest could not be given those back for sure; and so is what is pinned, as whoever holds the
        old pages would not see the new ones. Raises GuestAddressError, and does nothing, unless all
        of it is RAM and plugged; OSError if the host refuses.
        """
        slot = self._find(gpa)
        if slot is None or length < 0 or gpa + length > slot.end:
            raise GuestAddressError(gpa, length, "not in guest RAM")
        first = align_up(gpa - slot.gpa, PAGE_SIZE)
        last = align_down(gpa + length - slot.gpa, PAGE_SIZE)
        if slot.occupancy and not slot.occupancy.covers(gpa - slot.gpa, length):
            raise GuestAddressError(gpa, length, f"unplugged memory of {slot.name}")
        if last <= first or slot.region.backing.page_size > PAGE_SIZE or self.pinned:
            return 0
        slot.region.discard(first, last - first)
        return last - first

    def clear_ram(self) -> None:
        """All ordinary RAM reads as zeroes. Raises OSError if the host refuses.

        It is given back to the host, unless it is pinned.
        """
        for slot in self._slots:
            if slot.occupancy is not None:
                continue
            if self.pinned:
                slot.region.zero(0, slot.region.size)
            else:
                slot.region.discard(0, slot.region.size)

    def load(self, gpa: int, kind: type[R]) -> R:
        """The record of type `kind` at `gpa`. Raises GuestAddressError."""
        return kind.parse(self.read(gpa, kind.SIZE))

    def store(self, gpa: int, value: Record) -> None:
        """Write `value`'s bytes at `gpa`. Raises GuestAddressError."""
        self.write(gpa, value.build())

    def inspect(self) -> dict[str, object]:
        """Every region: name, size in bytes, by address."""
        return {f"{s.gpa:#x}": {"name": s.name, "size": s.region.size} for s in self._slots}

    def close(self) -> None:
        """Unmap every region."""
        for slot in self._slots:
            slot.region.close()
        self._slots.clear()
        self._starts.clear()
        self._near = None

    def _check_plugged(self, slot: Slot, gpa: int, length: int) -> None:
        """Raises GuestAddressError unless these bytes of a sparse region are memory now."""
        occupancy, offset = slot.occupancy, gpa - slot.gpa
        if occupancy is not None and not occupancy.covers(offset, length):
            occupancy.refused(offset, length)
            raise GuestAddressError(gpa, length, f"unplugged memory of {slot.name}")

    def _find(self, gpa: int) -> Slot | None:
        near = self._near
        if near is not None and near.gpa <= gpa < near.end:
            return near
        at = bisect_right(self._starts, gpa) - 1
        if at < 0 or gpa >= self._slots[at].end:
            return None
        found = self._near = self._slots[at]
        return found

    def _pieces(self, gpa: int, length: int) -> list[tuple[int, int]]:
        """[gpa, gpa + length) cut at region boundaries."""
        pieces: list[tuple[int, int]] = []
        while length > 0:
            slot = self._find(gpa)
            if slot is None:
                raise GuestAddressError(gpa, length, "not in guest RAM")
            size = min(length, slot.end - gpa)
            pieces.append((gpa, size))
            gpa += size
            length -= size
        return pieces


def _show(listeners: list[LayoutListener], slot: Slot, offset: int, length: int) -> None:
    """Tell all of them of bytes that come, or none: raises what the first one that refuses does."""
    for count, listener in enumerate(listeners):
        try:
            listener.on_plug(slot, offset, length)
        except BaseException:
            for told in reversed(listeners[:count]):
                told.on_unplug(slot, offset, length)
            raise
