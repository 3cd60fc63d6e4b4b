"""What drivers of both ring formats need: guest memory to hand out, buffers, chains in order.

How chains get into a ring and out of it is ring.py's (split) and packed_ring.py's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

from minivmm.memory.guest import GuestMemory
from minivmm.spec.virtio import DescriptorFlags
from minivmm.units import align_up
from minivmm.virtio.queue.queue import QueueLayout

_PLAIN = DescriptorFlags(0)


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

    def move(self, memory: GuestMemory) -> None:
        """Go on in `memory`, which is the same elsewhere."""
        self._memory = memory

    def give_back(self, gpa: int, size: int) -> None:
        """`gpa` came from take(`size`) and may be reused."""
        self._free.setdefault(size, []).append(gpa)


@dataclass(frozen=True)
class Used:
    """A chain that the device handed back."""

    head: int
    """What add() returned for it."""
    written: int
    """used.len: what the device claims to have written, in bytes."""
    buffer: bytes
    """The whole writable part, as it is in memory."""

    @property
    def data(self) -> bytes:
        """What the device wrote."""
        return self.buffer[: self.written]


@dataclass(frozen=True)
class Buffer:
    """`size` bytes of guest memory at `gpa` that a descriptor describes."""

    gpa: int
    size: int
    flags: DescriptorFlags = _PLAIN
    """WRITE or INDIRECT; NEXT is the ring's business."""


class RingDriver(ABC):
    """A ring of `size` descriptors in memory from `allocator`, laid out as `layout`."""

    layout: QueueLayout

    def __init__(
        self, memory: GuestMemory, allocator: GuestAllocator, size: int, *, event_idx: bool = False
    ) -> None:
        self.memory = memory
        self.size = size
        self._allocator = allocator
        self._event_idx = event_idx
        self._interrupts = True
        self._chains: dict[int, list[Buffer]] = {}

    def add(
        self,
        readable: Iterable[bytes] = (),
        writable: Iterable[int] = (),
        *,
        direct: int | None = None,
    ) -> int:
        """Make a chain available: a descriptor for each `readable` (bytes) and `writable` (size).

        With `direct`, only so many are in the ring, the others in an indirect table at the end.
        Returns its head or buffer id. Raises IndexError if the ring has no room.
        """
        buffers = [self._readable(data) for data in readable]
        buffers += [
            Buffer(self._allocator.take(max(n, 1)), n, DescriptorFlags.WRITE) for n in writable
        ]
        plain = buffers
        if direct is not None:
            table = self._readable(self._table(buffers[direct:]))
            pointer = Buffer(table.gpa, table.size, DescriptorFlags.INDIRECT)
            plain = [*buffers[:direct], pointer]
            buffers.append(pointer)
        head = self._offer_chain(plain)
        self._chains[head] = buffers
        return head

    def add_at(self, ranges: Iterable[tuple[int, int]]) -> int:
        """Make a chain available whose writable buffers are the given (gpa, length in bytes)."""
        head = self._offer_chain([Buffer(*one, DescriptorFlags.WRITE) for one in ranges])
        self._chains[head] = []
        return head

    def collect(self) -> list[Used]:
        """What the device has handed back since the last call; its descriptors are free again."""
        done: list[Used] = []
        while element := self._next_used():
            head, written = element
            buffers = self._chains.pop(head)
            stored = (b for b in buffers if b.flags & DescriptorFlags.WRITE)
            data = b"".join(self.memory.read(b.gpa, b.size) for b in stored)
            done.append(Used(head, written, data))
            for buffer in buffers:
                self._allocator.give_back(buffer.gpa, max(buffer.size, 1))
        self.want_interrupts(self._interrupts)
        return done

    def move(self, memory: GuestMemory) -> None:
        """Go on in `memory`, which is the same elsewhere."""
        self.memory = memory
        self._allocator.move(memory)

    @abstractmethod
    def wants_kick(self) -> bool:
        """Does the device want a doorbell for what was added since the last call?"""

    @abstractmethod
    def want_interrupts(self, wanted: bool) -> None:
        """Ask for an interrupt with the next used chain, or for none."""

    @property
    @abstractmethod
    def position(self) -> int:
        """next_off and next_wrap of a doorbell with NOTIFICATION_DATA: 16 bits (PCI-V-9)."""

    @abstractmethod
    def _table(self, buffers: list[Buffer]) -> bytes:
        """An indirect table of `buffers`."""

    @abstractmethod
    def _offer_chain(self, buffers: list[Buffer]) -> int:
        """Put a chain of `buffers` into the ring; what the device will call it."""

    @abstractmethod
    def _next_used(self) -> tuple[int, int] | None:
        """(head, written) of the next chain that came back, whose descriptors are then free."""

    def _readable(self, data: bytes) -> Buffer:
        gpa = self._allocator.take(max(len(data), 1))
        self.memory.write(gpa, data)
        return Buffer(gpa, len(data))

    def _u16(self, gpa: int) -> int:
        return int.from_bytes(self.memory.read(gpa, 2), "little")

    def _set_u16(self, gpa: int, value: int) -> None:
        self.memory.write(gpa, int(value).to_bytes(2, "little"))
