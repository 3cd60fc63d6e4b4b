"""The face that every virtqueue format shows to device models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class QueueLayout:
    """Where the driver put a queue: number of descriptors and three guest physical addresses.

    `driver` is the available ring (packed: driver event suppression), `device` the used ring
    (packed: device event suppression), as the common configuration names them.
    """

    size: int
    descriptors: int
    driver: int
    device: int


class Chain(Protocol):
    """One descriptor chain: a readable part and then a writable part, of any framing (SPL-D-1)."""

    readable: int
    """Bytes in the device-readable part."""
    writable: int
    """Bytes in the device-writable part."""
    descriptors: int
    """How many descriptors it is made of."""

    def read(self, limit: int | None = None) -> bytes:
        """A copy of the first `limit` readable bytes (all by default), taken now."""

    @property
    def writable_parts(self) -> tuple[tuple[int, int], ...]:
        """The writable buffers as (gpa, length in bytes): for pages that are meant themselves."""

    def write(self, data: bytes, at: int = 0) -> None:
        """Store `data` at byte `at` of the writable part. Raises ValueError if it does not fit."""


class VirtQueue(Protocol):
    """A live queue. Malformed rings raise DeviceBroken, which the transport turns into NEEDS_RESET.

    Use it inside VirtioDevice.handle_queue, where that exception is caught; work that the host
    starts gets there by Signals.kick.
    """

    index: int
    size: int
    interrupted: bool
    """chains() stopped at its bound; the transport clears it and kicks again later."""

    @property
    def in_flight(self) -> tuple[Chain, ...]:
        """Chains that were popped and are not completed, oldest first."""

    def pop(self) -> Chain | None:
        """The next available chain, or None. Popped chains must be completed."""

    def chains(self) -> Iterator[Chain]:
        """Available chains, popped one by one; so many per call that work is bounded.

        When it stops at that bound, the transport kicks the device again later.
        """

    def complete(self, chain: Chain, written: int = 0) -> None:
        """Hand `chain` back with `written` bytes stored (used.len), invisible until publish()."""

    def publish(self) -> bool:
        """Make completed chains visible; True if the driver wants an interrupt for them."""

    def close(self) -> None:
        """The transport calls it at reset: later calls do nothing and touch no guest memory."""

    def inspect(self) -> dict[str, object]:
        """Addresses and indices, for people."""
