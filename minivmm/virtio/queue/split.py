"""The split virtqueue, device side (virtio-spec 2.7): available ring in, used ring out.

Rings lie in guest RAM, and part of that RAM can be unplugged by the guest itself at any time
(virtio-mem). So nothing keeps a view of a ring: each operation asks GuestMemory for the part it
needs, which costs half a microsecond and fails cleanly (DeviceBroken) if it is RAM no more.

Loads and stores of the 16-bit indices go through memoryview.cast("H"), one machine access each.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from minivmm.errors import DeviceBroken, GuestAddressError
from minivmm.fence import full_fence
from minivmm.memory.guest import GuestMemory
from minivmm.spec import virtio
from minivmm.spec.virtio import DescriptorFlags, Feature
from minivmm.units import is_power_of_two
from minivmm.virtio.queue.chain import BufferChain
from minivmm.virtio.queue.queue import Chain, QueueLayout

MAX_INDIRECT_ENTRIES = 1024
"""Longest indirect table that is followed; Linux stays below (C.7: bound all work)."""

# The hot path's overlays of Descriptor, UsedElement and RingHeader; a test compares them.
DESCRIPTOR = struct.Struct("<QIHH")
USED_ELEMENT = struct.Struct("<II")
_FLAGS, _IDX, _RING = 0, 1, 2  # in 16-bit units
_USED_RING = virtio.RingHeader.SIZE
_EVENT = -1  # used_event and avail_event: the last 16-bit unit of their rings

# Plain integers: operations on enum members cost a microsecond each.
_NEXT = int(DescriptorFlags.NEXT)
_WRITE = int(DescriptorFlags.WRITE)
_INDIRECT = int(DescriptorFlags.INDIRECT)
_NO_INTERRUPT = int(virtio.AvailFlags.NO_INTERRUPT)


def need_event(event: int, new: int, old: int) -> bool:
    """Did the index pass `event` on its way from `old` to `new`? (16-bit, virtio-spec 2.7.10)"""
    return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF


class SplitQueue:
    """A live split queue. Raises DeviceBroken for every violation by the driver (C.7)."""

    def __init__(
        self, index: int, memory: GuestMemory, layout: QueueLayout, *, features: int
    ) -> None:
        self.index = index
        self.size = layout.size
        self.memory = memory
        self.closed = False
        self.interrupted = False
        self._layout = layout
        self._indirect = bool(features & Feature.INDIRECT_DESC.mask)
        self._event_idx = bool(features & Feature.EVENT_IDX.mask)
        self._next_avail = 0
        self._next_used = 0
        self._published = 0
        self._in_flight = 0
        self._decided_once = False
        self._check_layout()

    def pop(self) -> Chain | None:
        """The next available chain, or None. Popped chains must be completed."""
        if self.closed or not self._pending():
            return None
        head = self._avail()[_RING + self._next_avail % self.size]
        chain = self._walk(head)
        self._next_avail = (self._next_avail + 1) & 0xFFFF
        self._in_flight += 1
        return chain

    def chains(self) -> Iterator[Chain]:
        """Available chains, one by one; at most `size`, then `interrupted` tells of more."""
        for _ in range(self.size):
            chain = self.pop()
            if chain is None:
                return
            yield chain
        self.interrupted = not self.closed and self._pending() > 0

    def complete(self, chain: Chain, written: int = 0) -> None:
        """Write the used entry of `chain`; publish() makes it visible (SPL-D-7)."""
        if self.closed:
            return
        if not isinstance(chain, BufferChain) or not self._in_flight:
            raise ValueError(f"queue {self.index}: completing a chain that is not in flight")
        offset = _USED_RING + USED_ELEMENT.size * (self._next_used % self.size)
        USED_ELEMENT.pack_into(self._used(), offset, chain.head, written)
        self._next_used = (self._next_used + 1) & 0xFFFF
        self._in_flight -= 1

    def publish(self) -> bool:
        """Make completed chains visible; True if the driver wants an interrupt for them."""
        old, new = self._published, self._next_used
        if self.closed or old == new:
            return False
        self._used().cast("H")[_IDX] = new
        self._published = new
        full_fence()  # the driver may be switching interrupts on while looking at the old index
        avail = self._avail()
        if not self._event_idx:
            return not avail[_FLAGS] & _NO_INTERRUPT
        first, self._decided_once = not self._decided_once, True
        return first or need_event(avail[_EVENT], new, old)

    def close(self) -> None:
        """The driver is gone: from now on nothing of this queue touches guest memory."""
        self.closed = True

    def inspect(self) -> dict[str, object]:
        """Where the rings are and how far both sides got."""
        return {
            "size": self.size,
            "descriptors": f"{self._layout.descriptors:#x}",
            "driver": f"{self._layout.driver:#x}",
            "device": f"{self._layout.device:#x}",
            "next-avail": self._next_avail,
            "used": self._published,
            "in-flight": self._in_flight,
        }

    def _check_layout(self) -> None:
        layout, size = self._layout, self.size
        if not is_power_of_two(size) or size > virtio.MAX_QUEUE_SIZE:
            raise DeviceBroken(f"queue {self.index}: size {size} is not a power of two")
        for name, gpa, alignment in (
            ("descriptor table", layout.descriptors, virtio.DESCRIPTOR_ALIGNMENT),
            ("available ring", layout.driver, virtio.AVAIL_ALIGNMENT),
            ("used ring", layout.device, virtio.USED_ALIGNMENT),
        ):
            if gpa % alignment:
                raise DeviceBroken(f"queue {self.index}: {name} at {gpa:#x} is not aligned")
        self._descriptors()
        self._avail()
        self._used()

    def _pending(self) -> int:
        """Chains that wait. Finding none asks for a doorbell, and looks again (C.5)."""
        pending = self._count_pending()
        if not pending and self._event_idx:
            self._used().cast("H")[_EVENT] = self._next_avail
            full_fence()
            pending = self._count_pending()
        return pending

    def _count_pending(self) -> int:
        index = self._avail()[_IDX]
        pending: int = (index - self._next_avail) & 0xFFFF
        if pending + self._in_flight > self.size:
            raise DeviceBroken(
                f"queue {self.index}: avail.idx {index} after {self._next_avail},"
                f" {self._in_flight} in flight: more than {self.size} descriptors"
            )
        return pending

    def _walk(self, head: int) -> BufferChain:
        """The chain that starts at descriptor `head`; every descriptor is read once."""
        chain = BufferChain(self, head)
        table, entries, index, steps = self._descriptors(), self.size, head, 0
        inside = False
        while True:
            if index >= entries or steps >= entries:
                why = "out of the table" if index >= entries else "in a loop"
                raise DeviceBroken(f"queue {self.index}: chain {head} runs {why} at {index}")
            gpa, length, flags, following = DESCRIPTOR.unpack_from(table, DESCRIPTOR.size * index)
            steps += 1
            if flags & _INDIRECT:
                if inside or flags & _NEXT or not self._indirect:
                    raise DeviceBroken(f"queue {self.index}: chain {head}: indirect is not allowed")
                table, entries = self._indirect_table(head, gpa, length)
                index, steps, inside = 0, 0, True
                continue
            chain.add(gpa, length, writable=bool(flags & _WRITE))
            if not flags & _NEXT:
                return chain
            index = following

    def _indirect_table(self, head: int, gpa: int, length: int) -> tuple[memoryview, int]:
        entries, rest = divmod(length, DESCRIPTOR.size)
        if rest or not 1 <= entries <= MAX_INDIRECT_ENTRIES:
            raise DeviceBroken(f"queue {self.index}: chain {head}: indirect table size {length}")
        return self._view(gpa, length), entries

    def _descriptors(self) -> memoryview:
        return self._view(self._layout.descriptors, virtio.descriptor_table_size(self.size))

    def _avail(self) -> memoryview:
        return self._view(self._layout.driver, virtio.avail_ring_size(self.size)).cast("H")

    def _used(self) -> memoryview:
        return self._view(self._layout.device, virtio.used_ring_size(self.size))

    def _view(self, gpa: int, length: int) -> memoryview:
        try:
            return self.memory.view(gpa, length)
        except GuestAddressError as error:
            raise DeviceBroken(f"queue {self.index}: {error}") from error
