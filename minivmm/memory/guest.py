"""Guest physical address -> bytes: the only bounds check between the guest and host memory.

Unplugged virtio-mem blocks are not RAM here: a `guard` says which part of a region may be touched,
so that no ring, buffer or loader can re-populate what was given back (reference H, trap 10).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from minivmm.errors import GuestAddressError
from minivmm.memory.region import Region
from minivmm.spec.record import R, Record

Guard = Callable[[int, int], bool]
"""guard(offset, length): may these bytes of the region be accessed?"""


@dataclass(frozen=True, slots=True)
class Slot:
    """A region at guest physical address `gpa`; `guard` is None for ordinary RAM."""

    gpa: int
    region: Region
    name: str
    guard: Guard | None = None

    @property
    def end(self) -> int:
        """First guest physical address after the region."""
        return self.gpa + self.region.size


class LayoutListener(Protocol):
    """Told of every region, present and future (the machine turns them into memslots)."""

    def on_map(self, slot: Slot) -> None:
        """`slot` is now part of the address space."""


class GuestMemory:
    """The guest physical address space: non-overlapping regions of RAM."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._slots: list[Slot] = []
        self._listeners: list[LayoutListener] = []

    def add(self, gpa: int, region: Region, *, name: str, guard: Guard | None = None) -> None:
        """Put `region` at `gpa` (bytes, page aligned). Raises ValueError if it overlaps another."""
        slot = Slot(gpa, region, name, guard)
        for other in self._slots:
            if other.gpa < slot.end and gpa < other.end:
                raise ValueError(f"guest memory {name} at {gpa:#x} overlaps {other.name}")
        at = bisect_right(self._starts, gpa)
        self._starts.insert(at, gpa)
        self._slots.insert(at, slot)
        for listener in self._listeners:
            listener.on_map(slot)

    def subscribe(self, listener: LayoutListener) -> None:
        """Tell `listener` of all regions so far and of every later one."""
        self._listeners.append(listener)
        for slot in self._slots:
            listener.on_map(slot)

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
        offset = gpa - slot.gpa
        if slot.guard and not slot.guard(offset, length):
            raise GuestAddressError(gpa, length, f"unplugged memory of {slot.name}")
        return slot.region.view(offset, length)

    def check(self, gpa: int, length: int) -> None:
        """Raises GuestAddressError unless all of [`gpa`, `gpa` + `length`) may be accessed now."""
        for at, size in self._pieces(gpa, length):
            self.view(at, size)

    def read(self, gpa: int, length: int) -> bytes:
        """Copy of `length` bytes at `gpa`; may cross regions. Raises GuestAddressError."""
        return b"".join(bytes(self.view(at, size)) for at, size in self._pieces(gpa, length))

    def write(self, gpa: int, data: bytes) -> None:
        """Store `data` at `gpa`; may cross regions. Raises GuestAddressError and writes nothing."""
        views = [self.view(at, size) for at, size in self._pieces(gpa, len(data))]
        done = 0
        for view in views:
            view[:] = data[done : done + len(view)]
            done += len(view)

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

    def _find(self, gpa: int) -> Slot | None:
        at = bisect_right(self._starts, gpa) - 1
        if at < 0 or gpa >= self._slots[at].end:
            return None
        return self._slots[at]

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
