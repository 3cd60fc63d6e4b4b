"""Forms of saved state that have to do with virtio: chains, rings, registers, the whole function.

What of them makes sense is judged where it is loaded: saved.py, and the queues themselves.
"""

from __future__ import annotations

from struct import Struct as Overlay
from typing import Any

from construct import (
    Adapter,
    BytesInteger,
    Flag,
    GreedyBytes,
    If,
    Int8ul,
    Int16ul,
    Int32ul,
    Int64ul,
    PascalString,
    Prefixed,
    PrefixedArray,
    Rebuild,
    Struct,
    ValidationError,
    this,
)

from minivmm.pci.saved import MSIX, PCI
from minivmm.virtio.queue.chain import ChainState
from minivmm.virtio.queue.ring import RingState

FEATURES = BytesInteger(16, swapped=True)
"""Feature bits 0 to 127."""

PLAIN = Struct("features" / FEATURES)
"""A device model that remembers nothing but what its driver chose."""

BUFFER = Struct("gpa" / Int64ul, "length" / Int32ul)

CHAIN = Struct(
    "head" / Int16ul,
    "slots" / Int16ul,
    "descriptors" / Int32ul,
    "done" / Flag,
    "written" / Int32ul,
    "readable_count" / Int16ul,
    "writable_count" / Int16ul,
    "readable" / BUFFER[this.readable_count],
    "writable" / BUFFER[this.writable_count],
)

# The overlays of both: a console has 176 buffers in flight, and construct takes 80 ms for them.
_CHAIN = Overlay("<HHI?IHH")
_BUFFER = Overlay("<QI")


class _Chains(Adapter):  # type: ignore[misc]
    """Bytes that are CHAINs, one after the other, as ChainStates."""

    def _decode(self, data: bytes, context: Any, path: Any) -> tuple[ChainState, ...]:
        chains: list[ChainState] = []
        at = 0
        while at < len(data):
            begin = at + _CHAIN.size
            if begin > len(data):
                raise ValidationError("a chain is cut short", path=path)
            *fields, readable, writable = _CHAIN.unpack_from(data, at)
            middle = begin + _BUFFER.size * readable
            at = middle + _BUFFER.size * writable
            if at > len(data):
                raise ValidationError("the buffers of a chain are cut short", path=path)
            parts = (
                tuple(_BUFFER.iter_unpack(one)) for one in (data[begin:middle], data[middle:at])
            )
            chains.append(ChainState(*fields, *parts))
        return tuple(chains)

    def _encode(self, chains: tuple[ChainState, ...], context: Any, path: Any) -> bytes:
        pieces: list[bytes] = []
        for chain in chains:
            fields = (chain.head, chain.slots, chain.descriptors, chain.done, chain.written)
            pieces.append(_CHAIN.pack(*fields, len(chain.readable), len(chain.writable)))
            pieces += (_BUFFER.pack(*part) for part in (*chain.readable, *chain.writable))
        return b"".join(pieces)


class _Ring(Adapter):  # type: ignore[misc]
    """The values of a ring as a RingState."""

    def _decode(self, ring: Any, context: Any, path: Any) -> RingState:
        return RingState(ring.next_avail, ring.next_used, ring.decided, ring.chains)

    def _encode(self, ring: RingState, context: Any, path: Any) -> dict[str, object]:
        return {name: getattr(ring, name) for name in RingState.__slots__}


RING = _Ring(
    Struct(
        "next_avail" / Int16ul,
        "next_used" / Int16ul,
        "decided" / Flag,
        "chains" / _Chains(Prefixed(Int32ul, GreedyBytes)),
    )
)

QUEUE = Struct(
    "enabled" / Flag,
    "size" / Int16ul,  # as the driver chose; 0: it did not
    "refused" / Int32ul,  # all ones: no size was refused
    "addresses" / Int64ul[3],
    "live" / Rebuild(Flag, lambda this: this.ring is not None),
    "ring" / If(this.live, RING),
)

TRANSPORT = Struct(
    "status" / Int8ul,
    "driver_features" / FEATURES,
    "trouble" / PascalString(Int16ul, "utf8"),
    "generation" / Int8ul,
    "generation_seen" / Flag,
    "queues" / PrefixedArray(Int16ul, QUEUE),
)

COMMON = Struct(
    "device_feature_select" / Int32ul,
    "driver_feature_select" / Int32ul,
    "queue_select" / Int16ul,
    "config_vector" / Int16ul,
    "queue_vectors" / PrefixedArray(Int16ul, Int16ul),
)

FUNCTION = Struct(
    "pci" / PCI,
    "has_msix" / Rebuild(Flag, lambda this: this.msix is not None),
    "msix" / If(this.has_msix, MSIX),
    "isr" / Int8ul,
    "common" / COMMON,
    "transport" / TRANSPORT,
)
