"""The driver's side of a split virtqueue: well-behaved by default, hostile where a test asks.

It keeps to the split ring's driver rules (virtio-spec 2.7) and works on guest memory only; how the
device learns of the ring (registers, kicks) is driver.py's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from minivmm.memory.guest import GuestMemory
from minivmm.spec import virtio
from minivmm.spec.virtio import Descriptor, DescriptorFlags, UsedElement
from minivmm.units import align_up
from minivmm.virtio.queue.queue import QueueLayout


class GuestAllocator:
    """Hands out zeroed guest memory from [`base`, `end`) and takes it back."""

    def __init__(self, memory: GuestMemory, base: int, end: int) -> None:
        self._memory = memory
        self._next = base
        self._end = end
        self._free: dict[int, list[int]] = {}

    def take(self, size: int, alignment: int = 16) -> int:
        """Guest physical address of `size` zeroed bytes. Raises MemoryError when all is taken."""
        freed = self._free.get(size, [])
        gpa = next((g for g in freed if g % alignment == 0), None)
        if gpa is not None:
            freed.remove(gpa)
        else:
            gpa = align_up(self._next, alignment)
            if gpa + size > self._end:
                raise MemoryError(f"no room for {size} bytes of guest memory")
            self._next = gpa + size
        self._memory.write(gpa, bytes(size))
        return gpa

    def give_back(self, gpa: int, size: int) -> None:
        """`gpa` came from take(`size`) and may be reused."""
        self._free.setdefault(size, []).append(gpa)


@dataclass(frozen=True)
class Used:
    """A chain that the device handed back."""

    head: int
    written: int
    """used.len: what the device claims to have written, in bytes."""
    buffer: bytes
    """The whole writable part, as it is in memory."""

    @property
    def data(self) -> bytes:
        """What the device wrote."""
        return self.buffer[: self.written]


@dataclass(frozen=True)
class _Buffer:
    gpa: int
    size: int
    writable: bool


class SplitDriver:
    """A split ring of `size` descriptors in memory from `allocator`."""

    def __init__(
        self,
        memory: GuestMemory,
        allocator: GuestAllocator,
        size: int,
        *,
        event_idx: bool = False,
    ) -> None:
        self.memory = memory
        self.size = size
        self.layout = QueueLayout(
            size,
            allocator.take(virtio.descriptor_table_size(size), virtio.DESCRIPTOR_ALIGNMENT),
            allocator.take(virtio.avail_ring_size(size), virtio.AVAIL_ALIGNMENT),
            allocator.take(virtio.used_ring_size(size), virtio.USED_ALIGNMENT),
        )
        self._allocator = allocator
        self._event_idx = event_idx
        self._free = list(range(size - 1, -1, -1))
        self._chains: dict[int, tuple[list[int], list[_Buffer]]] = {}
        self._avail_idx = 0
        self._kicked_idx = 0
        self._last_used = 0
        self._interrupts = True

    # -- well-behaved ------------------------------------------------------------------------------

    def add(
        self,
        readable: Iterable[bytes] = (),
        writable: Iterable[int] = (),
        *,
        direct: int | None = None,
    ) -> int:
        """Make a chain available: a descriptor for each `readable` (bytes) and `writable` (size).

        With `direct`, only so many are in the table, the others in an indirect table at the end.
        Returns the head. Raises IndexError if the table has no room.
        """
        buffers = [self._readable(data) for data in readable]
        buffers += [_Buffer(self._allocator.take(max(n, 1)), n, True) for n in writable]
        plain = buffers if direct is None else buffers[:direct]
        entries = [(b.gpa, b.size, DescriptorFlags.WRITE if b.writable else 0) for b in plain]
        if direct is not None:
            table = self._indirect_table(buffers[direct:])
            buffers.append(table)
            entries.append((table.gpa, table.size, DescriptorFlags.INDIRECT))
        if len(entries) > len(self._free):
            raise IndexError(f"ring has {len(self._free)} free descriptors, not {len(entries)}")
        slots = [self._free.pop() for _ in entries]
        for at, (gpa, size, flags) in enumerate(entries):
            last = at == len(entries) - 1
            flags |= 0 if last else DescriptorFlags.NEXT
            self.set_descriptor(slots[at], gpa, size, flags, 0 if last else slots[at + 1])
        self._chains[slots[0]] = (slots, buffers)
        self.offer(slots[0])
        return slots[0]

    def wants_kick(self) -> bool:
        """Does the device want a doorbell for what was added since the last call?"""
        old, self._kicked_idx = self._kicked_idx, self._avail_idx
        if not self._event_idx:
            return not self.used_flags & 1
        passed = (self._avail_idx - self.avail_event - 1) & 0xFFFF
        return passed < (self._avail_idx - old) & 0xFFFF

    def collect(self) -> list[Used]:
        """What the device has handed back since the last call; its descriptors are free again."""
        done: list[Used] = []
        while self._last_used != self.used_idx:
            element = self.used_element(self._last_used)
            self._last_used = (self._last_used + 1) & 0xFFFF
            slots, buffers = self._chains.pop(element.id)
            self._free += reversed(slots)
            data = b"".join(self.memory.read(b.gpa, b.size) for b in buffers if b.writable)
            done.append(Used(element.id, element.len, data))
            for buffer in buffers:
                self._allocator.give_back(buffer.gpa, max(buffer.size, 1))
        self.want_interrupts(self._interrupts)
        return done

    def want_interrupts(self, wanted: bool) -> None:
        """Ask for an interrupt with the next used chain, or for none."""
        self._interrupts = wanted
        if self._event_idx:
            self.set_used_event(self._last_used if wanted else self._last_used - 1)
        else:
            self._set_u16(self.layout.driver, 0 if wanted else virtio.AvailFlags.NO_INTERRUPT)

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

    def _readable(self, data: bytes) -> _Buffer:
        gpa = self._allocator.take(max(len(data), 1))
        self.memory.write(gpa, data)
        return _Buffer(gpa, len(data), False)

    def _indirect_table(self, buffers: list[_Buffer]) -> _Buffer:
        table = b""
        for at, buffer in enumerate(buffers):
            last = at == len(buffers) - 1
            flags = int(DescriptorFlags.WRITE if buffer.writable else 0)
            flags |= 0 if last else int(DescriptorFlags.NEXT)
            entry = Descriptor(buffer.gpa, buffer.size, flags, 0 if last else at + 1)
            table += entry.build()
        return self._readable(table)

    def _u16(self, gpa: int) -> int:
        return int.from_bytes(self.memory.read(gpa, 2), "little")

    def _set_u16(self, gpa: int, value: int) -> None:
        self.memory.write(gpa, int(value).to_bytes(2, "little"))
