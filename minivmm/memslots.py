"""Which parts of guest memory KVM has memslots for: all RAM, and of sparse regions what is needed.

A memslot costs the host memory for every page that it covers (reference E.10), and hides accesses
to what is unplugged. So a sparse region is cut into ranges, and a range has a memslot only while
something in it is plugged, and a little longer: to give one up has KVM forget all that it has
mapped (LINGER). An access outside of all memslots exits as MMIO, hence has an address.

    nothing plugged     [              |              |              ]    no memslot
    blocks plugged      [##############|              |              ]    one per range in use
    after narrow()      [##  ####    ##|              |              ]    exactly what is plugged
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Container, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from typing import Protocol

from minivmm.errors import HostError
from minivmm.kvm.abi import Cap
from minivmm.kvm.hypervisor import Hypervisor, HypervisorVm
from minivmm.memory.guest import Slot
from minivmm.memslot_pieces import Piece, Pieces, range_size
from minivmm.units import TIB, format_size

LARGEST_MEMSLOT = 4 * TIB
"""Bytes; KVM wants less than 2^31 pages in a memslot (reference F.3)."""

LINGER = 2.0
"""Seconds in which nothing may come or go before memslots without plugged memory are given up.

KVM then forgets what it has mapped of all memory, and the guest faults in even its boot memory once
more (reference F.3): once after a shrink, and not at the end of every range.
"""


class MemslotLog(Protocol):
    """Who wants to know what is written to guest memory; see write_log.py."""

    def plugged(self, gpa: int, length: int) -> None:
        """These bytes, whatever is in them, are memory now."""

    def leaving(self, memslot: Memslot) -> None:
        """KVM's log of `memslot` is about to be lost with it."""


@dataclass(frozen=True, slots=True)
class Memslot:
    """What KVM knows as memslot `number`: `length` bytes at `gpa`, `offset` of a region."""

    number: int
    slot: Slot
    offset: int
    length: int

    @property
    def gpa(self) -> int:
        """Guest physical address of its first byte."""
        return self.slot.gpa + self.offset


class Memslots:
    """The LayoutListener that keeps KVM's memslots. Called with the machine's lock held.

    `limit` is what KVM_CAP_NR_MEMSLOTS says; `sparse` and `block` are for range_size(). Memslots of
    `guarded` regions never linger. A vCPU may run during every method but narrow(): none removes a
    memslot with plugged memory in it.
    """

    def __init__(
        self,
        vm: HypervisorVm,
        limit: int,
        *,
        sparse: int = 0,
        block: int = 0,
        guarded: Container[str] = (),
    ) -> None:
        self._vm = vm
        self._limit = limit
        self._guarded = guarded
        self._lingering = False
        self._free: list[int] = []
        self._next = 0
        self._regions: dict[int, Pieces] = {}
        self._known: dict[int, Memslot] = {}
        self._log: MemslotLog | None = None
        self.range_size = range_size(sparse, block, limit)
        """Bytes of a region that share a memslot unless narrowed."""
        self.changes = 0
        """How often anything was plugged, unplugged or narrowed."""
        self.later: Callable[[float, Callable[[], None]], None] | None = None
        """Does something in so many seconds (Errands.later); without it, no memslot lingers."""

    @property
    def count(self) -> int:
        """Memslots that KVM has now."""
        return self._next - len(self._free)

    # -- LayoutListener ------------------------------------------------------------------------

    def on_map(self, slot: Slot) -> None:
        """RAM gets its memslot, a sparse region none yet. Raises HostError."""
        if slot.occupancy is not None:
            self._regions[slot.gpa] = Pieces(slot)
            return
        for offset in range(0, slot.region.size, LARGEST_MEMSLOT):
            self._create(slot, offset, min(LARGEST_MEMSLOT, slot.region.size - offset))

    def on_plug(self, slot: Slot, offset: int, length: int) -> None:
        """Memslots for all of these bytes, or HostError and everything as before."""
        region = self._regions[slot.gpa]
        piece = region.covering(offset, length)  # nearly always there is one
        if piece is not None:
            piece.plugged += length
        else:
            self._add_missing(region, offset, length)
            region.count(offset, length, 1)
        self.changes += 1
        if self._log is not None:
            self._log.plugged(slot.gpa + offset, length)

    def on_unplug(self, slot: Slot, offset: int, length: int) -> None:
        """Memslots with nothing plugged in them are given up, soon."""
        region = self._regions[slot.gpa]
        self.changes += 1
        piece = region.covering(offset, length)
        if piece is None:
            region.count(offset, length, -1)
        else:
            piece.plugged -= length
            if piece.plugged:
                return
        if self.later is None or slot.name in self._guarded:
            self._drop_unused(region, region.touching(offset, length))
        elif not self._lingering:
            self._lingering = True
            self.later(LINGER, partial(self._tidy, self.changes))

    def on_readable(self, slot: Slot) -> None:
        """What was kept for being readable may not be needed any more."""
        region = self._regions[slot.gpa]
        self._drop_unused(region, list(region.pieces))

    # ------------------------------------------------------------------------------------------

    def show(self, gpa: int, size: int, hva: int) -> Callable[[], None]:
        """bus.Windows: a memslot for memory of a device. Raises HostError."""
        number = self._take(gpa, size, hva, "device memory")

        def hide() -> None:
            self._vm.set_memory_region(number, gpa, 0, hva)
            heappush(self._free, number)

        return hide

    def narrow(self, names: Container[str]) -> bool:
        """Cut the memslots of the named regions down to exactly what is plugged in them.

        All vCPUs must be parked: live memory is without a memslot for a moment. False if there was
        nothing to cut, and no unplugging on its way that will leave something. Raises HostError,
        with nothing changed, if the pieces would be too many.
        """
        if self._lingering:
            self._end_linger()
        found = False
        cuts: list[tuple[Pieces, Piece, list[tuple[int, int]]]] = []
        count = self.count
        for region in self._regions.values():
            if region.slot.name not in names:
                continue
            for piece in region.pieces:
                if piece.plugged == piece.length:
                    continue
                found = True
                runs = self._runs(region, piece, self._limit - count + 1)
                if sum(length for _, length in runs) == piece.plugged:
                    cuts.append((region, piece, runs))
                    count += len(runs) - 1
        for region, piece, runs in cuts:
            self._delete(region, piece)
            for offset, length in runs:
                self._add(region, offset, length).plugged = length
        self.changes += found
        return found

    @property
    def all(self) -> tuple[Memslot, ...]:
        """Every memslot that KVM has now."""
        return tuple(self._known.values())

    def log_to(self, log: MemslotLog | None) -> None:
        """Have KVM keep a log of every memslot, those to come as well, for `log`; None ends it.

        vCPUs may run. Raises HostError if KVM cannot, and then nothing is logged.
        """
        self._log = log
        try:
            for memslot in self._known.values():
                self._set(memslot)
        except HostError:
            if log is not None:
                with suppress(HostError):  # a log that nobody reads costs time, no more
                    self.log_to(None)
                raise

    def inspect(self) -> dict[str, object]:
        """Counts, and in bytes: the size of a range, and how much of sparse regions is covered."""
        regions = self._regions.values()
        covered = sum(piece.length for region in regions for piece in region.pieces)
        return {
            "count": self.count,
            "limit": self._limit,
            "range-size": self.range_size,
            "covered": covered,
        }

    def _runs(self, region: Pieces, piece: Piece, most: int) -> list[tuple[int, int]]:
        """The plugged runs inside `piece`. Raises HostError if there are more than `most`."""
        runs: list[tuple[int, int]] = []
        assert region.slot.occupancy is not None
        for run in region.slot.occupancy.plugged_ranges(piece.offset, piece.length):
            runs.append(run)
            if len(runs) > most:
                raise HostError(
                    f"{region.slot.name}: its plugged memory is in more pieces than KVM has"
                    f" memslots ({self._limit}), so accesses between them cannot be told apart:"
                    " use a larger block-size= or protect=off"
                )
        return runs

    def _tidy(self, changes: int) -> None:
        """Give up what is of no use, unless something came or went since the `changes`-th time."""
        if self.later is not None and changes != self.changes:
            self.later(LINGER, partial(self._tidy, self.changes))
        else:
            self._end_linger()

    def _end_linger(self) -> None:
        self._lingering = False
        for region in self._regions.values():
            self._drop_unused(region, list(region.pieces))

    def _drop_unused(self, region: Pieces, pieces: list[Piece]) -> None:
        for piece in pieces:
            if not piece.plugged and not self._kept(region, piece):
                # KVM may be out of memory for the change; then this memslot stays, to no harm.
                with suppress(HostError):
                    self._delete(region, piece)

    def _kept(self, region: Pieces, piece: Piece) -> bool:
        """Is it a whole range that the guest may read, unplugged as it is? (MEM-D-20)

        It could do without: such reads exit, and are answered. But slowly.
        """
        assert region.slot.occupancy is not None
        whole = min(self.range_size, region.slot.region.size - piece.offset)
        return piece.length == whole and piece.offset < region.slot.occupancy.readable

    def _add_missing(self, region: Pieces, offset: int, length: int) -> None:
        """Memslots for what of these bytes has none; all of them or HostError and none."""
        missing = list(region.missing(offset, length, self.range_size))
        with ExitStack() as undo:
            for start, size in missing:
                undo.callback(self._drop, region, self._add(region, start, size))
            undo.pop_all()

    def _add(self, region: Pieces, offset: int, length: int) -> Piece:
        piece = Piece(offset, length, self._create(region.slot, offset, length))
        insort(region.pieces, piece, key=lambda known: known.offset)
        return piece

    def _drop(self, region: Pieces, piece: Piece) -> None:
        with suppress(HostError):
            self._delete(region, piece)

    def _delete(self, region: Pieces, piece: Piece) -> None:
        slot = region.slot
        if self._log is not None:
            self._log.leaving(self._known[piece.number])
        self._vm.set_memory_region(
            piece.number, slot.gpa + piece.offset, 0, slot.region.hva + piece.offset
        )
        del self._known[piece.number]
        del region.pieces[bisect_left(region.pieces, piece.offset, key=lambda known: known.offset)]
        heappush(self._free, piece.number)

    def _create(self, slot: Slot, offset: int, length: int) -> int:
        logged = self._log is not None
        hva = slot.region.hva + offset
        number = self._take(slot.gpa + offset, length, hva, slot.name, logged=logged)
        self._known[number] = Memslot(number, slot, offset, length)
        return number

    def _take(self, gpa: int, length: int, hva: int, name: str, *, logged: bool = False) -> int:
        """Set a memslot; returns its number. Raises HostError if KVM refuses or has no more."""
        if self._lingering and not self._free and self._next == self._limit:
            self._end_linger()
        number = self._free[0] if self._free else self._next
        if number >= self._limit:
            raise HostError(
                f"{name}: no memslot is left for {format_size(length)} at"
                f" {gpa:#x} (KVM has {self._limit}): use fewer or larger blocks"
            )
        self._vm.set_memory_region(number, gpa, length, hva, logged=logged)
        if self._free:
            heappop(self._free)
        else:
            self._next += 1
        return number

    def _set(self, memslot: Memslot) -> None:
        """Tell KVM whether a memslot that it has shall be logged."""
        hva = memslot.slot.region.hva + memslot.offset
        self._vm.set_memory_region(
            memslot.number, memslot.gpa, memslot.length, hva, logged=self._log is not None
        )


class SparseSpec(Protocol):
    """A sparse region that is to be."""

    @property
    def size(self) -> int:
        """Bytes of the region."""

    @property
    def block_size(self) -> int:
        """Bytes of a block."""

    @property
    def id(self) -> str:
        """Its name."""

    @property
    def protect(self) -> str:
        """What happens when the guest touches what is unplugged; "off": nothing."""


def memslots_for(vm: HypervisorVm, system: Hypervisor, regions: Sequence[SparseSpec]) -> Memslots:
    """Memslots for a machine that will have these sparse regions, besides RAM."""
    limit = system.check(Cap.NR_MEMSLOTS)
    sparse = sum(region.size for region in regions)
    block = max((region.block_size for region in regions), default=0)
    guarded = {region.id for region in regions if region.protect != "off"}
    return Memslots(vm, limit, sparse=sparse, block=block, guarded=guarded)
