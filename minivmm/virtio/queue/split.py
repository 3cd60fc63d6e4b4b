"""The split virtqueue, device side (virtio-spec 2.7): available ring in, used ring out."""

from __future__ import annotations

import struct

from minivmm.errors import DeviceBroken
from minivmm.spec import virtio
from minivmm.spec.virtio import DescriptorFlags
from minivmm.units import is_power_of_two
from minivmm.virtio.queue.chain import BufferChain
from minivmm.virtio.queue.ring import MAX_CHAIN_LENGTH, RingQueue, RingState

# The hot path's overlays of Descriptor, UsedElement and RingHeader; a test compares them.
DESCRIPTOR = struct.Struct("<QIHH")
USED_ELEMENT = struct.Struct("<II")
_unpack_descriptor = DESCRIPTOR.unpack_from
_STEP = DESCRIPTOR.size
_FLAGS, _IDX, _RING = 0, 1, 2  # in 16-bit units
_USED_RING = virtio.RingHeader.SIZE
_EVENT = -1  # used_event and avail_event: the last 16-bit unit of their rings

# Plain integers: operations on enum members cost a microsecond each.
_NEXT = int(DescriptorFlags.NEXT)
_WRITE = int(DescriptorFlags.WRITE)
_INDIRECT = int(DescriptorFlags.INDIRECT)
_NO_INTERRUPT = int(virtio.AvailFlags.NO_INTERRUPT)


class SplitQueue(RingQueue):
    """A live split queue; a chain takes one slot of the available ring."""

    def _set_up(self, resumed: RingState | None) -> None:
        layout, look = self.layout, resumed is None
        self._next_avail = 0
        self._next_used = 0
        self._published = 0
        self._shown = 0
        if not is_power_of_two(self.size) or self.size > virtio.MAX_QUEUE_SIZE:
            raise DeviceBroken(f"queue {self.index}: size {self.size} is not a power of two")
        size = virtio.descriptor_table_size(self.size)
        self._table = self._part(
            "descriptor table", layout.descriptors, size, virtio.DESCRIPTOR_ALIGNMENT, look=look
        )
        size = virtio.avail_ring_size(self.size)
        self._avail = self._part(
            "available ring", layout.driver, size, virtio.AVAIL_ALIGNMENT, look=look
        )
        size = virtio.used_ring_size(self.size)
        self._used = self._part("used ring", layout.device, size, virtio.USED_ALIGNMENT, look=look)
        if resumed is not None:
            self._go_on_at(resumed)

    def inspect(self) -> dict[str, object]:
        """Where the rings are and how far both sides got."""
        indices = {"next-avail": self._next_avail, "used": self._published}
        return {"format": "split", **super().inspect(), **indices}

    def _positions(self) -> tuple[int, int]:
        return self._next_avail, self._next_used

    def _go_on_at(self, state: RingState) -> None:
        self._resume(state, slots=1)
        if any(chain.head >= self.size for chain in state.chains):
            raise DeviceBroken(f"queue {self.index}: a chain's head is not in the table")
        if (state.next_avail - state.next_used) & 0xFFFF != self._in_flight:
            raise DeviceBroken(
                f"queue {self.index}: {self._in_flight} chains in flight between {state.next_used}"
                f" and {state.next_avail}"
            )
        self._next_avail = state.next_avail
        self._next_used = self._published = self._shown = state.next_used

    def _is_available(self) -> bool:
        index = self._avail.words()[_IDX]
        pending: int = (index - self._next_avail) & 0xFFFF
        if pending + self._in_flight > self.size:
            raise DeviceBroken(
                f"queue {self.index}: avail.idx {index} after {self._next_avail},"
                f" {self._in_flight} in flight: more than {self.size} descriptors"
            )
        return pending > 0

    def _ask_for_doorbell(self) -> None:
        self._used.words()[_EVENT] = self._next_avail

    def _take(self) -> BufferChain:
        head = self._avail.words()[_RING + self._next_avail % self.size]
        chain = self._walk(BufferChain(self, head))
        self._next_avail = (self._next_avail + 1) & 0xFFFF
        return chain

    def _walk(self, chain: BufferChain) -> BufferChain:
        """Add what the descriptors from `chain.head` on, and a table at their end, describe."""
        table, entries = self._table.bytes(), self.size
        index, steps, found = chain.head, 0, 0
        inside = False
        while True:
            if index >= entries:
                raise self._broken(chain, f"runs out of the table at {index}")
            if steps >= entries or found >= MAX_CHAIN_LENGTH:
                raise self._broken(chain, f"in a loop, or too long, at {index}")
            gpa, length, flags, following = _unpack_descriptor(table, _STEP * index)
            if flags & _INDIRECT:
                if inside or flags & _NEXT or not self._indirect:
                    raise self._broken(chain, "indirect is not allowed")
                table, entries = self._indirect_table(chain, gpa, length)
                index, steps, inside = 0, 0, True
                continue
            chain.add(gpa, length, writable=flags & _WRITE != 0)
            steps += 1
            found += 1
            if not flags & _NEXT:
                chain.descriptors = found
                return chain
            index = following

    def _hand_back(self, chain: BufferChain) -> None:
        offset = _USED_RING + USED_ELEMENT.size * (self._next_used % self.size)
        USED_ELEMENT.pack_into(self._used.bytes(), offset, chain.head, chain.written)
        self._next_used = (self._next_used + 1) & 0xFFFF
        self._in_flight -= chain.slots

    def _show(self) -> bool:
        new = self._next_used
        self._shown = self._published
        if new == self._published:
            return False
        self._used.words()[_IDX] = new
        self._published = new
        return True

    def _interrupt_wanted(self) -> bool:
        avail = self._avail.words()
        if not self._event_idx:
            return not avail[_FLAGS] & _NO_INTERRUPT
        return self._passed(avail[_EVENT], self._published, self._shown)
