"""Rings as a driver writes them that keeps to no rule, in one way for both formats.

Well-behaved drivers are ring.py and packed_ring.py, whose memory this writes to; what a device must
make of it is ordeal.py's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from minivmm.spec import virtio
from minivmm.spec.virtio import Descriptor, DescriptorFlags, PackedDescriptor, PackedFlags
from minivmm.testing.buffers import RingDriver
from minivmm.testing.packed_ring import PackedDriver
from minivmm.testing.ring import SplitDriver

_NEXT = int(DescriptorFlags.NEXT)


@dataclass(frozen=True)
class Raw:
    """A descriptor of any content. `flags` are without the packed ring's AVAIL and USED."""

    gpa: int
    length: int
    flags: int = 0
    following: int | None = None
    """Split: its `next`; by default the index behind its own. Packed descriptors have none."""


class RawRing(ABC):
    """Writes chains of Raw into the ring of a well-behaved driver, from the ring's start on.

    Do not mix with that driver's own add() and collect().
    """

    def __init__(self) -> None:
        self.granted: list[tuple[int, int]] = []
        """(gpa, length in bytes) of every buffer that was offered as writable."""

    def offer(self, *chain: Raw, identifier: int = 0) -> None:
        """Make `chain` available, with NEXT in all descriptors but the last.

        `identifier` is a packed chain's buffer id. Chains that follow lie behind it.
        """
        linked = [Raw(one.gpa, one.length, one.flags | _NEXT, one.following) for one in chain[:-1]]
        self.grant(*chain)
        self._offer([*linked, *chain[-1:]], identifier)

    def grant(self, *entries: Raw) -> None:
        """The writable ones of `entries` may be written to."""
        for one in entries:
            if one.flags & DescriptorFlags.WRITE:
                self.granted.append((one.gpa, one.length))

    @abstractmethod
    def table(self, *entries: Raw) -> bytes:
        """An indirect table of `entries`, in their order."""

    @abstractmethod
    def used(self) -> list[tuple[int, int]]:
        """(head or id, length) of what came back since the last call, in order of use."""

    @property
    @abstractmethod
    def device_parts(self) -> list[tuple[int, int]]:
        """(gpa, length in bytes) of those parts of the ring that the device may write."""

    @abstractmethod
    def _offer(self, chain: list[Raw], identifier: int) -> None:
        """Make it available."""


class RawSplit(RawRing):
    """A split ring. Descriptors are taken in order from the table, around its end."""

    def __init__(self, ring: SplitDriver) -> None:
        super().__init__()
        self.ring = ring
        self._next = 0
        self._seen = 0

    def _offer(self, chain: list[Raw], identifier: int) -> None:
        head = self._next
        for one in chain:
            behind = (self._next + 1) % self.ring.size
            following = behind if one.following is None else one.following
            self.ring.set_descriptor(self._next, one.gpa, one.length, one.flags, following)
            self._next = behind
        self.ring.offer(head)

    def table(self, *entries: Raw) -> bytes:
        """NEXT in all entries but the last."""
        data = b""
        for at, one in enumerate(entries, 1):
            flags = one.flags | (_NEXT if at < len(entries) else 0)
            following = at if one.following is None else one.following
            data += Descriptor(one.gpa, one.length, flags, following & 0xFFFF).build()
        return data

    def used(self) -> list[tuple[int, int]]:
        """By the used index."""
        found: list[tuple[int, int]] = []
        while self._seen != self.ring.used_idx:
            element = self.ring.used_element(self._seen)
            found.append((element.id, element.len))
            self._seen = (self._seen + 1) & 0xFFFF
        return found

    @property
    def device_parts(self) -> list[tuple[int, int]]:
        """The used ring and nothing else (SPL-D-2)."""
        layout = self.ring.layout
        return [(layout.device, virtio.used_ring_size(layout.size))]


class RawPacked(RawRing):
    """A packed ring. Chains are thought to be used in order."""

    def __init__(self, ring: PackedDriver) -> None:
        super().__init__()
        self.ring = ring
        self._slots: list[int] = []

    def _offer(self, chain: list[Raw], identifier: int) -> None:
        cursor = self.ring.next_avail
        descriptors = []
        for one in chain:
            flags = one.flags | int(cursor.available())
            descriptors.append((cursor.at, one.gpa, one.length, identifier, flags))
            cursor.advance(1)
        for descriptor in reversed(descriptors):
            self.ring.set_descriptor(*descriptor)
        self._slots.append(len(chain))

    def table(self, *entries: Raw) -> bytes:
        """Flags as they are given; ids that mean nothing."""
        return b"".join(
            PackedDescriptor(one.gpa, one.length, 0xBAD, one.flags).build() for one in entries
        )

    def used(self) -> list[tuple[int, int]]:
        """By the flags at the place where the next used descriptor must come."""
        found: list[tuple[int, int]] = []
        both = PackedFlags.AVAIL | PackedFlags.USED
        while self._slots:
            descriptor = self.ring.descriptor(self.ring.next_used.at)
            if descriptor.flags & both != self.ring.next_used.used():
                break
            found.append((descriptor.id, descriptor.len))
            self.ring.next_used.advance(self._slots.pop(0))
        return found

    @property
    def device_parts(self) -> list[tuple[int, int]]:
        """The ring and the device's event suppression structure."""
        layout = self.ring.layout
        return [
            (layout.descriptors, virtio.packed_ring_size(layout.size)),
            (layout.device, virtio.EventSuppression.SIZE),
        ]


def raw(ring: RingDriver) -> RawRing:
    """The raw face of `ring`."""
    if isinstance(ring, PackedDriver):
        return RawPacked(ring)
    assert isinstance(ring, SplitDriver)
    return RawSplit(ring)
