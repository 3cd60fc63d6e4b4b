"""The packed virtqueue, device side (virtio-spec 2.8): one ring that both sides go around.

    driver: writes descriptors, AVAIL = its wrap counter, USED = the inverse
    device: writes one used descriptor per chain, AVAIL = USED = its wrap counter

Both wrap counters start at 1 and toggle at the ring's end. They are kept here in the form in which
they are compared and stored: as the two flags that a descriptor of this lap has.
"""

from __future__ import annotations

import struct

from minivmm.errors import DeviceBroken
from minivmm.spec import virtio
from minivmm.spec.virtio import DescriptorFlags, EventFlags, PackedFlags
from minivmm.virtio.queue.chain import BufferChain
from minivmm.virtio.queue.ring import MAX_CHAIN_LENGTH, RingQueue, RingState

# The hot path's overlays of PackedDescriptor and of its part that a used one changes.
DESCRIPTOR = struct.Struct("<QIHH")
USED = struct.Struct("<IH")
_USED_OFFSET = virtio.PackedDescriptor.OFFSETS["len"]
_WORDS = DESCRIPTOR.size // 2
_FLAGS_WORD = virtio.PackedDescriptor.OFFSETS["flags"] // 2

# Plain integers: operations on enum members cost a microsecond each.
_NEXT = int(DescriptorFlags.NEXT)
_WRITE = int(DescriptorFlags.WRITE)
_INDIRECT = int(DescriptorFlags.INDIRECT)
_AVAIL = int(PackedFlags.AVAIL)
_BOTH = int(PackedFlags.AVAIL | PackedFlags.USED)
_ENABLE = int(EventFlags.ENABLE)
_DISABLE = int(EventFlags.DISABLE)
_DESCRIPTOR = int(EventFlags.DESCRIPTOR)


class PackedQueue(RingQueue):
    """A live packed queue; a chain takes a slot of the ring for each direct descriptor."""

    def _set_up(self, resumed: RingState | None) -> None:
        layout, look = self.layout, resumed is None
        self._next_avail = 0
        self._avail_lap = _AVAIL
        self._next_used = 0
        self._used_lap = _BOTH
        self._done: list[BufferChain] = []
        self._shown = 0
        if not 1 <= self.size <= virtio.MAX_QUEUE_SIZE:
            raise DeviceBroken(
                f"queue {self.index}: size {self.size} is not 1 to {virtio.MAX_QUEUE_SIZE}"
            )
        size = virtio.packed_ring_size(self.size)
        self._ring = self._part(
            "ring", layout.descriptors, size, virtio.PACKED_RING_ALIGNMENT, look=look
        )
        size, alignment = virtio.EventSuppression.SIZE, virtio.EVENT_ALIGNMENT
        self._driver_event = self._part("driver area", layout.driver, size, alignment, look=look)
        self._device_event = self._part("device area", layout.device, size, alignment, look=look)
        if resumed is not None:
            self._go_on_at(resumed)
            return
        if self._event_idx:
            self._ask_for_doorbell()
        self._device_event.words()[1] = _DESCRIPTOR if self._event_idx else _ENABLE

    def inspect(self) -> dict[str, object]:
        """Where the ring is and how far both sides got."""
        positions = {"next-avail": self._next_avail, "next-used": self._next_used}
        return {"format": "packed", **super().inspect(), **positions}

    def _positions(self) -> tuple[int, int]:
        avail = virtio.WRAP_COUNTER if self._avail_lap == _AVAIL else 0
        used = virtio.WRAP_COUNTER if self._used_lap == _BOTH else 0
        return self._next_avail | avail, self._next_used | used

    def _go_on_at(self, state: RingState) -> None:
        self._resume(state, slots=None)
        self._next_avail, wrap = self._place(state.next_avail)
        self._avail_lap = _AVAIL if wrap else _BOTH ^ _AVAIL
        self._next_used, used_wrap = self._place(state.next_used)
        self._used_lap = _BOTH if used_wrap else 0
        ahead = self._next_used + self._in_flight
        lap, place = divmod(ahead, self.size)
        if (place, used_wrap ^ bool(lap)) != (self._next_avail, wrap):
            raise DeviceBroken(
                f"queue {self.index}: {self._in_flight} slots in flight between"
                f" {state.next_used:#x} and {state.next_avail:#x}"
            )

    def _place(self, position: int) -> tuple[int, bool]:
        """Descriptor and wrap counter."""
        at = position & (virtio.WRAP_COUNTER - 1)
        if at >= self.size:
            raise DeviceBroken(f"queue {self.index}: position {at} of {self.size}")
        return at, bool(position & virtio.WRAP_COUNTER)

    def _is_available(self) -> bool:
        """The flags are loaded before anything else of that descriptor (PKD-D-3)."""
        flags: int = self._ring.words()[_WORDS * self._next_avail + _FLAGS_WORD]
        return flags & _BOTH == self._avail_lap

    def _ask_for_doorbell(self) -> None:
        wrap = virtio.WRAP_COUNTER if self._avail_lap == _AVAIL else 0
        self._device_event.words()[0] = self._next_avail | wrap

    def _take(self) -> BufferChain:
        ring = self._ring.bytes()
        at, lap, free = self._next_avail, self._avail_lap, self.size - self._in_flight
        chain = BufferChain(self, at)
        slots = 0
        flags = _NEXT
        while flags & _NEXT:
            if slots >= min(free, MAX_CHAIN_LENGTH):
                raise self._broken(chain, f"longer than the {free} free descriptors, or too long")
            gpa, length, chain.head, flags = DESCRIPTOR.unpack_from(ring, DESCRIPTOR.size * at)
            if flags & _BOTH != lap:
                raise self._broken(chain, f"runs into descriptor {at}, which is not available")
            slots += 1
            at += 1
            if at == self.size:
                at, lap = 0, lap ^ _BOTH
            if not flags & _INDIRECT:
                chain.add(gpa, length, writable=flags & _WRITE != 0)
            elif slots > 1 or flags & _NEXT or not self._indirect:
                raise self._broken(chain, "indirect is not allowed")
            else:
                self._add_table(chain, gpa, length)
        chain.slots = slots
        chain.descriptors += slots
        self._next_avail, self._avail_lap = at, lap
        return chain

    def _add_table(self, chain: BufferChain, gpa: int, length: int) -> None:
        """All entries in their order; of their flags, WRITE alone has a meaning (PKD-D-7)."""
        table, chain.descriptors = self._indirect_table(chain, gpa, length)
        for gpa, length, _, flags in DESCRIPTOR.iter_unpack(table):
            chain.add(gpa, length, writable=flags & _WRITE != 0)

    def _hand_back(self, chain: BufferChain) -> None:
        self._done.append(chain)

    def _show(self) -> bool:
        """Write a used descriptor for each chain, in order of completion, its flags last."""
        if not self._done:
            return False
        ring, words = self._ring.bytes(), self._ring.words()
        self._shown = 0
        for chain in self._done:
            start = DESCRIPTOR.size * self._next_used
            USED.pack_into(ring, start + _USED_OFFSET, chain.written, chain.head)
            flags = self._used_lap | (_WRITE if chain.written else 0)
            words[_WORDS * self._next_used + _FLAGS_WORD] = flags
            self._skip(chain.slots)
        self._done.clear()
        return True

    def _skip(self, slots: int) -> None:
        """The next used descriptor comes behind all of the chain's (PKD-D-6)."""
        self._shown += slots
        self._in_flight -= slots
        self._next_used += slots
        if self._next_used >= self.size:
            self._next_used -= self.size
            self._used_lap ^= _BOTH

    def _interrupt_wanted(self) -> bool:
        """Position and flags of the driver's event structure are loaded as one (C.5)."""
        event = self._driver_event.bytes().cast("I")[0]
        flags = event >> 16 & virtio.EVENT_FLAGS_MASK
        if flags == _DISABLE:
            return False
        if flags != _DESCRIPTOR or not self._event_idx:
            return True
        position = event & (virtio.WRAP_COUNTER - 1)
        if bool(event & virtio.WRAP_COUNTER) != bool(self._used_lap):
            position -= self.size
        return self._passed(position, self._next_used, self._next_used - self._shown)
