"""Virtqueues: descriptor chains and the rings that carry them."""

from minivmm.memory.guest import GuestMemory
from minivmm.spec.virtio import Feature
from minivmm.virtio.queue.packed import PackedQueue
from minivmm.virtio.queue.queue import QueueLayout, VirtQueue
from minivmm.virtio.queue.ring import RingState
from minivmm.virtio.queue.split import SplitQueue


def open_queue(
    index: int,
    memory: GuestMemory,
    layout: QueueLayout,
    features: int,
    resumed: RingState | None = None,
) -> VirtQueue:
    """Queue `index` in the format that `features` (all negotiated bits) ask for.

    With `resumed`, it goes on where another process was, and guest memory is not looked at yet.
    Raises DeviceBroken if `layout` breaks that format's rules or is not guest RAM, or if `resumed`
    is a state that no ring can be in.
    """
    kind = PackedQueue if features & Feature.RING_PACKED.mask else SplitQueue
    return kind(index, memory, layout, features=features, resumed=resumed)
