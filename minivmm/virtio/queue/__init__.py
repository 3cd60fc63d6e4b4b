"""Virtqueues: descriptor chains and the rings that carry them."""

from minivmm.memory.guest import GuestMemory
from minivmm.spec.virtio import Feature
from minivmm.virtio.queue.packed import PackedQueue
from minivmm.virtio.queue.queue import QueueLayout, VirtQueue
from minivmm.virtio.queue.split import SplitQueue


def open_queue(index: int, memory: GuestMemory, layout: QueueLayout, features: int) -> VirtQueue:
    """Queue `index` in the format that `features` (all negotiated bits) ask for.

    Raises DeviceBroken if `layout` breaks that format's rules or is not guest RAM.
    """
    kind = PackedQueue if features & Feature.RING_PACKED.mask else SplitQueue
    return kind(index, memory, layout, features=features)
