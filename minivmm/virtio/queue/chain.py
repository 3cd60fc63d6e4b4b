"""A descriptor chain as device models see it: bytes in, bytes out, whatever the driver's framing.

Which descriptors belong to it is the business of the queue formats. Buffers are kept as guest
addresses and translated at every access: memory can be unplugged while a chain is being worked on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

from minivmm.errors import DeviceBroken, GuestAddressError
from minivmm.memory.guest import GuestMemory
from minivmm.spec.virtio import MAX_CHAIN_BYTES


class ChainOwner(Protocol):
    """The queue that a chain came from."""

    memory: GuestMemory
    closed: bool


@dataclass(frozen=True, slots=True)
class ChainState:
    """A chain that a device has, as plain data; buffers are (gpa, length in bytes)."""

    head: int
    slots: int
    descriptors: int
    done: bool
    """Completed, but not handed back: older ones come first (IN_ORDER)."""
    written: int
    readable: tuple[tuple[int, int], ...]
    writable: tuple[tuple[int, int], ...]


class BufferChain:
    """The Chain of every queue format.

    `head` is what its used element or descriptor calls it, `slots` how many places of the ring it
    takes, `descriptors` how many were read for it. `done` and `written` are set by its completion.
    """

    __slots__ = (
        "_readable_parts",
        "_writable_parts",
        "descriptors",
        "done",
        "head",
        "owner",
        "readable",
        "slots",
        "writable",
        "written",
    )

    def __init__(self, owner: ChainOwner, head: int) -> None:
        self.owner = owner
        self.head = head
        self.slots = 1
        self.descriptors = 0
        self.readable = 0
        self.writable = 0
        self.written = 0
        self.done = False
        self._readable_parts: list[tuple[int, int]] = []
        self._writable_parts: list[tuple[int, int]] = []

    @classmethod
    def resumed(cls, owner: ChainOwner, state: ChainState) -> Self:
        """The chain that `state` was taken of. Whether it is in RAM shows when it is used.

        Raises DeviceBroken for empty buffers, and for more than 2^32 bytes in all.
        """
        chain = cls(owner, state.head)
        chain.slots, chain.descriptors = state.slots, state.descriptors
        chain.done, chain.written = state.done, state.written
        chain._readable_parts = list(state.readable)
        chain._writable_parts = list(state.writable)
        chain.readable = sum(length for _, length in state.readable)
        chain.writable = sum(length for _, length in state.writable)
        if not all(length for _, length in (*state.readable, *state.writable)):
            raise DeviceBroken(f"chain {chain.head}: an empty buffer")
        if chain.readable + chain.writable > MAX_CHAIN_BYTES:
            raise DeviceBroken(f"chain {chain.head}: longer than 4 GiB")
        return chain

    def state(self) -> ChainState:
        """Plain data of which `resumed` makes an equal chain."""
        return ChainState(
            self.head,
            self.slots,
            self.descriptors,
            self.done,
            self.written,
            tuple(self._readable_parts),
            tuple(self._writable_parts),
        )

    def add(self, gpa: int, length: int, *, writable: bool) -> None:
        """Append a buffer of `length` bytes at `gpa`; empty ones are ignored, wherever they are.

        Raises DeviceBroken: readable after writable (SPL-V-2), more than 2^32 bytes in all
        (SPL-V-3), or not guest RAM.
        """
        if not length:
            return
        if self.readable + self.writable + length > MAX_CHAIN_BYTES:
            raise DeviceBroken(f"chain {self.head}: longer than 4 GiB")
        try:
            self.owner.memory.check(gpa, length)
        except GuestAddressError as error:
            raise self._gone(error) from error
        if writable:
            self._writable_parts.append((gpa, length))
            self.writable += length
        elif self.writable:
            raise DeviceBroken(f"chain {self.head}: readable buffer after a writable one")
        else:
            self._readable_parts.append((gpa, length))
            self.readable += length

    def read(self, limit: int | None = None) -> bytes:
        """A copy of the first `limit` readable bytes (all by default), taken now.

        Raises DeviceBroken if the memory was unplugged meanwhile.
        """
        left = self.readable if limit is None or limit > self.readable else limit
        pieces: list[bytes] = []
        load = self.owner.memory.read
        try:
            for gpa, length in self._readable_parts:
                if left <= length:
                    last = load(gpa, left)
                    return b"".join((*pieces, last)) if pieces else last
                pieces.append(load(gpa, length))
                left -= length
        except GuestAddressError as error:
            raise self._gone(error) from error
        return b""

    @property
    def writable_parts(self) -> tuple[tuple[int, int], ...]:
        """The writable buffers themselves, as (gpa, length in bytes)."""
        return tuple(self._writable_parts)

    def write(self, data: bytes, at: int = 0) -> None:
        """Store `data` at byte `at` of the writable part. Raises ValueError if it does not fit.

        Raises DeviceBroken if the memory was unplugged meanwhile. Does nothing once the queue is
        closed: after a device reset that memory belongs to somebody else (GEN-D-5).
        """
        if at + len(data) > self.writable:
            raise ValueError(f"{len(data)} bytes at {at} of a writable part of {self.writable}")
        if self.owner.closed:
            return
        done = 0
        store = self.owner.memory.write
        try:
            for gpa, length in self._writable_parts:
                if done >= len(data):
                    break
                if at >= length:
                    at -= length
                    continue
                piece = data[done : done + length - at]
                store(gpa + at, piece)
                done += len(piece)
                at = 0
        except GuestAddressError as error:
            raise self._gone(error) from error

    def _gone(self, error: GuestAddressError) -> DeviceBroken:
        return DeviceBroken(f"chain {self.head}: {error}")
