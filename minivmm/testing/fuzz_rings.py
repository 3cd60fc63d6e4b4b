"""Rings as no driver should leave them: what the fuzzer does to a ring of either format.

Unlike raw_ring.py's, these steps mix with each other and with those of the proper driver. Raises
GuestAddressError where the ring is RAM no more.
"""

from __future__ import annotations

from collections.abc import Sequence

from minivmm.memory.guest import GuestMemory
from minivmm.spec import virtio
from minivmm.spec.virtio import PackedFlags
from minivmm.testing.buffers import RingDriver
from minivmm.testing.packed_ring import PackedDriver
from minivmm.testing.ring import SplitDriver

Words = tuple[int, int, int, int]
"""Address, length, flags, and `next` or buffer id of a descriptor."""

_BOTH = int(PackedFlags.AVAIL | PackedFlags.USED)


def put(ring: RingDriver, entries: Sequence[Words]) -> None:
    """Make a chain available whose flags are as given; of packed ones, XORed with this lap's."""
    if isinstance(ring, PackedDriver):
        for gpa, length, flags, identifier in entries:
            here = ring.next_avail
            ring.set_descriptor(here.at, gpa, length, identifier, flags ^ int(here.available()))
            here.advance(1)
    elif isinstance(ring, SplitDriver):
        for at, (gpa, length, flags, following) in enumerate(entries[: ring.size]):
            ring.set_descriptor(at, gpa, length, flags, following)
        ring.offer(0)


def offer(ring: RingDriver, head: int) -> None:
    """Make any descriptor available, written or not."""
    if isinstance(ring, PackedDriver):
        index = head % ring.size
        found = ring.descriptor(index)
        ring.set_descriptor(index, found.addr, found.len, found.id, found.flags ^ _BOTH)
    elif isinstance(ring, SplitDriver):
        ring.offer(head)


def jump(ring: RingDriver, delta: int) -> None:
    """The driver goes on somewhere else."""
    if isinstance(ring, PackedDriver):
        ring.next_avail.advance(delta % ring.size)
    elif isinstance(ring, SplitDriver):
        ring.set_avail_idx(ring.position + delta)


def suppress(ring: RingDriver, position: int, flags: int) -> None:
    """Any event suppression."""
    if isinstance(ring, PackedDriver):
        ring.set_driver_event(position, flags)
    elif isinstance(ring, SplitDriver):
        ring.set_used_event(position)
        ring.memory.write(ring.layout.driver, flags.to_bytes(2, "little"))


def part(ring: RingDriver, number: int) -> tuple[int, int]:
    """(gpa, bytes) of the descriptors, the driver's or the device's part: 0, 1, 2."""
    layout, size = ring.layout, ring.size
    if isinstance(ring, PackedDriver):
        event = virtio.EventSuppression.SIZE
        sizes = (virtio.packed_ring_size(size), event, event)
    else:
        sizes = (
            virtio.descriptor_table_size(size),
            virtio.avail_ring_size(size),
            virtio.used_ring_size(size),
        )
    return (layout.descriptors, layout.driver, layout.device)[number], sizes[number]


def table(memory: GuestMemory, gpa: int, entries: Sequence[Words]) -> int:
    """Write an indirect table of any content at `gpa`; its size in bytes."""
    data = b"".join(virtio.Descriptor(*words).build() for words in entries)
    memory.write(gpa, data)
    return len(data)
