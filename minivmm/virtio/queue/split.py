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
        index, layout = self.index, self.layout
        self._table_size = virtio.descriptor_table_size(self.size)
        self._avail_size = virtio.avail_ring_size(self.size)
        self._used_size = virtio.used_ring_size(self.size)
        self._next_avail = 0
        self._next_used = 0
        self._published = 0
        self._shown = 0
        if not is_power_of_two(self.size) or self.size > virtio.MAX_QUEUE_SIZE:
            raise DeviceBroken(f"queue {index}: size {self.size} is not a power of two")
        for name, gpa, length, alignment in (
            ("descriptor table", layout.descriptors, self._table_size, virtio.DESCRIPTOR_ALIGNMENT),
            ("available ring", layout.driver, self._avail_size, virtio.AVAIL_ALIGNMENT),
            ("used ring", layout.device, self._used_size, virtio.USED_ALIGNMENT),
        ):
            self._check_part(name, gpa, length, alignment, look=resumed is None)
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
        index = self._avail()[_IDX]
        pending: int = (index - self._next_avail) & 0xFFFF
        if pending + self._in_flight > self.size:
            raise DeviceBroken(
                f"queue {self.index}: avail.idx {index} after {self._next_avail},"
                f" {self._in_flight} in flight: more than {self.size} descriptors"
            )
        return pending > 0

    def _ask_for_doorbell(self) -> None:
        self._used().cast("H")[_EVENT] = self._next_avail

    def _take(self) -> BufferChain:
        head = self._avail()[_RING + self._next_avail % self.size]
        chain = self._walk(BufferChain(self, head))
        self._next_avail = (self._next_avail + 1) & 0xFFFF
        return chain

    def _walk(self, chain: BufferChain) -> BufferChain:
        """Add what the descriptors from `chain.head` on, and a table at their end, describe."""
        table = self._view(self.layout.descriptors, self._table_size)
        entries, index, steps = self.size, chain.head, 0
        inside = False
        while True:
            if index >= entries:
                raise self._broken(chain, f"runs out of the table at {index}")
            if steps >= entries or chain.descriptors >= MAX_CHAIN_LENGTH:
                raise self._broken(chain, f"in a loop, or too long, at {index}")
            gpa, length, flags, following = DESCRIPTOR.unpack_from(table, DESCRIPTOR.size * index)
            steps += 1
            chain.descriptors += 1
            if flags & _INDIRECT:
                if inside or flags & _NEXT or not self._indirect:
                    raise self._broken(chain, "indirect is not allowed")
                table, entries = self._indirect_table(chain, gpa, length)
                chain.descriptors -= 1
                index, steps, inside = 0, 0, True
                continue
            chain.add(gpa, length, writable=bool(flags & _WRITE))
            if not flags & _NEXT:
                return chain
            index = following

    def _hand_back(self, chain: BufferChain) -> None:
        offset = _USED_RING + USED_ELEMENT.size * (self._next_used % self.size)
        USED_ELEMENT.pack_into(self._used(), offset, chain.head, chain.written)
        self._next_used = (self._next_used + 1) & 0xFFFF
        self._in_flight -= chain.slots

    def _show(self) -> bool:
        new = self._next_used
        self._shown = self._published
        if new == self._published:
            return False
        self._used().cast("H")[_IDX] = new
        self._published = new
        return True

    def _interrupt_wanted(self) -> bool:
        avail = self._avail()
        if not self._event_idx:
            return not avail[_FLAGS] & _NO_INTERRUPT
        return self._passed(avail[_EVENT], self._published, self._shown)

    def _avail(self) -> memoryview:
        return self._view(self.layout.driver, self._avail_size).cast("H")

    def _used(self) -> memoryview:
        return self._view(self.layout.device, self._used_size)
