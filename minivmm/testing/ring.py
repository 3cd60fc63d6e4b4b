"""The driver's side of a split virtqueue: well-behaved by default, hostile where a test asks.

It keeps to the split ring's driver rules (virtio-spec 2.7) and works on guest memory only; how the
device learns of the ring (registers, kicks) is driver.py's.
"""

from __future__ import annotations

from minivmm.memory.guest import GuestMemory
from minivmm.spec import virtio
from minivmm.spec.virtio import Descriptor, DescriptorFlags, UsedElement
from minivmm.testing.buffers import Buffer, GuestAllocator, RingDriver
from minivmm.virtio.queue.queue import QueueLayout


class SplitDriver(RingDriver):
    """A split ring of `size` descriptors in memory from `allocator`."""

    def __init__(
        self, memory: GuestMemory, allocator: GuestAllocator, size: int, *, event_idx: bool = False
    ) -> None:
        super().__init__(memory, allocator, size, event_idx=event_idx)
        self.layout = QueueLayout(
            size,
            allocator.take(virtio.descriptor_table_size(size), virtio.DESCRIPTOR_ALIGNMENT),
            allocator.take(virtio.avail_ring_size(size), virtio.AVAIL_ALIGNMENT),
            allocator.take(virtio.used_ring_size(size), virtio.USED_ALIGNMENT),
        )
        self._free = list(range(size - 1, -1, -1))
        self._slots: dict[int, list[int]] = {}
        self._avail_idx = 0
        self._kicked_idx = 0
        self._last_used = 0

    # -- well-behaved ------------------------------------------------------------------------------

    def wants_kick(self) -> bool:
        """Does the device want a doorbell for what was added since the last call?"""
        old, self._kicked_idx = self._kicked_idx, self._avail_idx
        if not self._event_idx:
            return not self.used_flags & 1
        passed = (self._avail_idx - self.avail_event - 1) & 0xFFFF
        return passed < (self._avail_idx - old) & 0xFFFF

    def want_interrupts(self, wanted: bool) -> None:
        """Ask for an interrupt with the next used chain, or for none."""
        self._interrupts = wanted
        if self._event_idx:
            self.set_used_event(self._last_used if wanted else self._last_used - 1)
        else:
            self._set_u16(self.layout.driver, 0 if wanted else virtio.AvailFlags.NO_INTERRUPT)

    @property
    def position(self) -> int:
        """avail.idx."""
        return self._avail_idx

    # -- raw access, for hostile drivers -----------------------------------------------------------

    def set_descriptor(self, index: int, gpa: int, size: int, flags: int, following: int) -> None:
        """Write descriptor `index` of the table."""
        at = self.layout.descriptors + Descriptor.SIZE * index
        self.memory.write(at, Descriptor(gpa, size, int(flags), following).build())

    def offer(self, head: int) -> None:
        """Put `head` into the available ring and move avail.idx."""
        self._set_u16(self.layout.driver + 4 + 2 * (self._avail_idx % self.size), head)
        self.set_avail_idx(self._avail_idx + 1)

    def set_avail_idx(self, index: int) -> None:
        """Store avail.idx (taken modulo 65536)."""
        self._avail_idx = index & 0xFFFF
        self._set_u16(self.layout.driver + 2, self._avail_idx)

    def set_used_event(self, index: int) -> None:
        """Store used_event."""
        self._set_u16(self.layout.driver + 4 + 2 * self.size, index & 0xFFFF)

    @property
    def used_flags(self) -> int:
        """used.flags."""
        return self._u16(self.layout.device)

    @property
    def used_idx(self) -> int:
        """used.idx."""
        return self._u16(self.layout.device + 2)

    @property
    def avail_event(self) -> int:
        """avail_event, which the device writes."""
        return self._u16(self.layout.device + 4 + UsedElement.SIZE * self.size)

    def used_element(self, index: int) -> UsedElement:
        """The used entry for the free-running `index`."""
        at = self.layout.device + 4 + UsedElement.SIZE * (index % self.size)
        return self.memory.load(at, UsedElement)

    # -- inside ------------------------------------------------------------------------------------

    def _offer_chain(self, buffers: list[Buffer]) -> int:
        if len(buffers) > len(self._free):
            raise IndexError(f"ring has {len(self._free)} free descriptors, not {len(buffers)}")
        slots = [self._free.pop() for _ in buffers]
        for slot, buffer, following in zip(slots, buffers, [*slots[1:], None], strict=True):
            flags = buffer.flags if following is None else buffer.flags | DescriptorFlags.NEXT
            self.set_descriptor(slot, buffer.gpa, buffer.size, flags, following or 0)
        self._slots[slots[0]] = slots
        self.offer(slots[0])
        return slots[0]

    def _next_used(self) -> tuple[int, int] | None:
        if self._last_used == self.used_idx:
            return None
        element = self.used_element(self._last_used)
        self._last_used = (self._last_used + 1) & 0xFFFF
        self._free += reversed(self._slots.pop(element.id))
        return element.id, element.len

    def _table(self, buffers: list[Buffer]) -> bytes:
        table = b""
        for at, buffer in enumerate(buffers, 1):
            last = at == len(buffers)
            flags = int(buffer.flags if last else buffer.flags | DescriptorFlags.NEXT)
            table += Descriptor(buffer.gpa, buffer.size, flags, 0 if last else at).build()
        return table
