"""The driver's side of a packed virtqueue (virtio-spec 2.8): well-behaved, or as a test asks.

It works on guest memory only; how the device learns of the ring is driver.py's.
"""

from __future__ import annotations

from dataclasses import dataclass

from minivmm.memory.guest import GuestMemory
from minivmm.spec import virtio
from minivmm.spec.virtio import (
    DescriptorFlags,
    EventFlags,
    EventSuppression,
    PackedDescriptor,
    PackedFlags,
)
from minivmm.testing.buffers import Buffer, GuestAllocator, RingDriver
from minivmm.virtio.queue.queue import QueueLayout


@dataclass
class Cursor:
    """A place in a ring of `size` descriptors, and the wrap counter there."""

    size: int
    at: int = 0
    wrap: bool = True

    def advance(self, count: int) -> None:
        """`count` descriptors on, at most a lap."""
        self.at += count
        if self.at >= self.size:
            self.at -= self.size
            self.wrap = not self.wrap

    def word(self) -> int:
        """As event suppression structures and doorbells write it."""
        return self.at | (virtio.WRAP_COUNTER if self.wrap else 0)

    def available(self) -> PackedFlags:
        """Flags of a descriptor here that is available."""
        return PackedFlags.AVAIL if self.wrap else PackedFlags.USED

    def used(self) -> PackedFlags:
        """Flags of a descriptor here that is used."""
        return PackedFlags.AVAIL | PackedFlags.USED if self.wrap else PackedFlags(0)


class PackedDriver(RingDriver):
    """A packed ring of `size` descriptors in memory from `allocator`."""

    def __init__(
        self, memory: GuestMemory, allocator: GuestAllocator, size: int, *, event_idx: bool = False
    ) -> None:
        super().__init__(memory, allocator, size, event_idx=event_idx)
        self.layout = QueueLayout(
            size,
            allocator.take(virtio.packed_ring_size(size), virtio.PACKED_RING_ALIGNMENT),
            allocator.take(EventSuppression.SIZE, virtio.EVENT_ALIGNMENT),
            allocator.take(EventSuppression.SIZE, virtio.EVENT_ALIGNMENT),
        )
        self.next_avail = Cursor(size)
        self.next_used = Cursor(size)
        self._free = size
        self._free_ids = list(range(size - 1, -1, -1))
        self._slots: dict[int, int] = {}
        self._added = 0
        self.want_interrupts(True)

    # -- well-behaved ------------------------------------------------------------------------------

    def wants_kick(self) -> bool:
        """Does the device want a doorbell for what was added since the last call?"""
        added, self._added = self._added, 0
        event = self.device_event()
        if event.flags != EventFlags.DESCRIPTOR:
            return event.flags != EventFlags.DISABLE
        here = self.next_avail
        position = event.position & ~virtio.WRAP_COUNTER
        if bool(event.position & virtio.WRAP_COUNTER) != here.wrap:
            position -= self.size
        return here.at - added <= position < here.at

    def want_interrupts(self, wanted: bool) -> None:
        """Ask for an interrupt with the next used chain, or for none."""
        self._interrupts = wanted
        if not wanted:
            self.set_driver_event(0, EventFlags.DISABLE)
        elif self._event_idx:
            self.set_driver_event(self.next_used.word(), EventFlags.DESCRIPTOR)
        else:
            self.set_driver_event(0, EventFlags.ENABLE)

    @property
    def position(self) -> int:
        """Where the next chain will start, and the wrap counter there."""
        return self.next_avail.word()

    # -- raw access, for hostile drivers -----------------------------------------------------------

    def set_descriptor(self, index: int, gpa: int, size: int, identifier: int, flags: int) -> None:
        """Write descriptor `index` of the ring, AVAIL and USED being part of `flags`."""
        at = self.layout.descriptors + PackedDescriptor.SIZE * index
        self.memory.write(at, PackedDescriptor(gpa, size, identifier, int(flags)).build())

    def descriptor(self, index: int) -> PackedDescriptor:
        """Descriptor `index` of the ring as it is now."""
        at = self.layout.descriptors + PackedDescriptor.SIZE * index
        return self.memory.load(at, PackedDescriptor)

    def set_driver_event(self, position: int, flags: int) -> None:
        """Say when interrupts are wanted."""
        self.memory.store(self.layout.driver, EventSuppression(position, int(flags)))

    def device_event(self) -> EventSuppression:
        """When the device wants doorbells."""
        return self.memory.load(self.layout.device, EventSuppression)

    # -- inside ------------------------------------------------------------------------------------

    def _offer_chain(self, buffers: list[Buffer]) -> int:
        """The first descriptor is written last, as it makes all of them available (PKD-V-4)."""
        if len(buffers) > self._free:
            raise IndexError(f"ring has {self._free} free descriptors, not {len(buffers)}")
        identifier = self._free_ids.pop()
        descriptors: list[tuple[int, int, int, int, int]] = []
        for left, buffer in zip(range(len(buffers) - 1, -1, -1), buffers, strict=True):
            flags = int(buffer.flags) | int(self.next_avail.available())
            flags |= int(DescriptorFlags.NEXT) if left else 0
            at = self.next_avail.at
            descriptors.append((at, buffer.gpa, buffer.size, 0 if left else identifier, flags))
            self.next_avail.advance(1)
        for descriptor in reversed(descriptors):
            self.set_descriptor(*descriptor)
        self._free -= len(buffers)
        self._added += len(buffers)
        self._slots[identifier] = len(buffers)
        return identifier

    def _next_used(self) -> tuple[int, int] | None:
        found = self.descriptor(self.next_used.at)
        both = PackedFlags.AVAIL | PackedFlags.USED
        if not self._slots or found.flags & both != self.next_used.used():
            return None
        slots = self._slots.pop(found.id)
        self.next_used.advance(slots)
        self._free += slots
        self._free_ids.append(found.id)
        return found.id, found.len

    def _table(self, buffers: list[Buffer]) -> bytes:
        """Entries are in order; of their flags only WRITE means something (virtio-spec 2.8.7)."""
        return b"".join(PackedDescriptor(b.gpa, b.size, 0, int(b.flags)).build() for b in buffers)
