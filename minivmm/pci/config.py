"""Configuration space of one function: bytes, which bits are writable, and who watches which bytes.

What the bytes mean (BARs, MSI-X, virtio) is for function.py and its heirs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from minivmm.spec import pci
from minivmm.spec.record import Record

Hook = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Watch:
    """Calls for accesses that touch any byte of [`start`, `end`)."""

    start: int
    end: int
    before_read: Hook | None
    after_write: Hook | None

    def touches(self, offset: int, size: int) -> bool:
        """True if an access of `size` bytes at `offset` shares a byte with the watched range."""
        return offset < self.end and self.start < offset + size


class ConfigSpace:
    """256 bytes of configuration space, and extended space that is empty (reads as zeroes)."""

    def __init__(self, header: pci.Header) -> None:
        self._bytes = bytearray(pci.CONFIG_SIZE)
        self._writable = bytearray(pci.CONFIG_SIZE)
        self._initial = bytes(pci.CONFIG_SIZE)
        self._watches: list[Watch] = []
        self._next_free = pci.FIRST_CAPABILITY
        self._last_capability: int | None = None
        self.declare(0, header.build())

    def declare(self, offset: int, data: bytes, writable: bytes = b"") -> None:
        """Put `data` at `offset` as the reset value; `writable` has a 1 for every writable bit."""
        end = offset + len(data)
        self._bytes[offset:end] = data
        self._writable[offset : offset + len(writable)] = writable
        self._initial = bytes(self._bytes)

    def add_capability(self, capability: Record, writable: bytes = b"") -> int:
        """Append `capability` to the chain; returns its offset. Raises ValueError if it is full.

        `writable` counts from the start of the capability. The `next` field is filled in here.
        """
        offset = self._next_free
        if offset + capability.SIZE > pci.CONFIG_SIZE:
            raise ValueError(f"no room for {type(capability).__name__} in configuration space")
        self._next_free = -(-(offset + capability.SIZE) // 4) * 4
        if self._last_capability is None:
            status = self.get(pci.STATUS, 2) | pci.Status.CAPABILITY_LIST
            self.declare(pci.STATUS, status.to_bytes(2, "little"))
            self.declare(pci.CAPABILITIES, bytes([offset]))
        else:
            link = self._last_capability + pci.CapabilityHeader.OFFSETS["next"]
            self.declare(link, bytes([offset]))
        self._last_capability = offset
        self.declare(offset, capability.build(), writable)
        return offset

    def watch(
        self,
        offset: int,
        size: int,
        *,
        before_read: Hook | None = None,
        after_write: Hook | None = None,
    ) -> None:
        """Call the hooks for guest accesses that touch [`offset`, `offset` + `size`)."""
        self._watches.append(Watch(offset, offset + size, before_read, after_write))

    def get(self, offset: int, size: int) -> int:
        """The value of `size` bytes at `offset`, without side effects."""
        return int.from_bytes(self._bytes[offset : offset + size], "little")

    def set(self, offset: int, size: int, value: int) -> None:
        """Store `value` whatever is writable, without side effects."""
        self._bytes[offset : offset + size] = value.to_bytes(size, "little")

    def read(self, offset: int, size: int) -> int:
        """Guest read of `size` bytes at `offset`; all ones behind the 256 bytes.

        That says that there is no more: zeroes would be an empty list of extended capabilities,
        in which Linux looks for each one that it knows.
        """
        if offset >= pci.CONFIG_SIZE:
            return (1 << 8 * size) - 1
        for watch in self._watches:
            if watch.before_read and watch.touches(offset, size):
                watch.before_read()
        return self.get(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Guest write: writable bits take the value, all others keep theirs."""
        end = min(offset + size, pci.CONFIG_SIZE)
        for at in range(offset, end):
            mask = self._writable[at]
            byte = value >> 8 * (at - offset) & 0xFF
            self._bytes[at] = self._bytes[at] & ~mask | byte & mask
        for watch in self._watches:
            if watch.after_write and watch.touches(offset, size):
                watch.after_write()

    def save(self) -> bytes:
        """All bytes, for `load` of an equal space."""
        return bytes(self._bytes)

    def alien(self, saved: bytes) -> int | None:
        """The first offset at which `saved` has other bits than guests can make of this space."""
        for at, (byte, own, mask) in enumerate(
            zip(saved, self._initial, self._writable, strict=True)
        ):
            if (byte ^ own) & ~mask:
                return at
        return None

    def load(self, saved: bytes) -> None:
        """Take `saved` over, in which nothing is alien; nobody is called."""
        self._bytes[:] = saved

    @property
    def initial(self) -> bytes:
        """All bytes as they are after reset."""
        return self._initial

    def reset(self) -> None:
        """All bytes back to their reset values; nobody is called."""
        self._bytes[:] = self._initial
