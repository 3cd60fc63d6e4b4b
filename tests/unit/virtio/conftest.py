"""Both sides of one ring, in either format."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from minivmm.memory.guest import GuestMemory
from minivmm.memory.region import Region
from minivmm.spec.virtio import Feature
from minivmm.testing.buffers import GuestAllocator, RingDriver
from minivmm.testing.packed_ring import PackedDriver
from minivmm.testing.ring import SplitDriver
from minivmm.units import MIB
from minivmm.virtio.queue import open_queue

RAM = 4 * MIB


class Pair:
    """A driver and a device that share a ring; `features` are those negotiated."""

    def __init__(
        self, memory: GuestMemory, allocator: GuestAllocator, size: int, features: int
    ) -> None:
        self.memory = memory
        self.allocator = allocator
        kind = PackedDriver if features & Feature.RING_PACKED.mask else SplitDriver
        event_idx = bool(features & Feature.EVENT_IDX.mask)
        self.driver: RingDriver = kind(memory, allocator, size, event_idx=event_idx)
        self.queue = open_queue(0, memory, self.driver.layout, features)

    def echo(self) -> bool:
        """Handle all chains; True if an interrupt is wanted."""
        for chain in self.queue.chains():
            data = chain.read(chain.writable)
            chain.write(data)
            self.queue.complete(chain, len(data))
        return self.queue.publish()


MakePair = Callable[..., Pair]


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    made = GuestMemory()
    made.add(0, Region(RAM), name="ram")
    yield made
    made.close()


@pytest.fixture
def allocator(memory: GuestMemory) -> GuestAllocator:
    return GuestAllocator(memory, 0x10000, RAM)


@pytest.fixture(params=["split", "packed"])
def ring_format(request: pytest.FixtureRequest) -> int:
    """The feature bit of each ring format in turn: none for split."""
    return Feature.RING_PACKED.mask if request.param == "packed" else 0


@pytest.fixture
def make_pair(memory: GuestMemory, allocator: GuestAllocator) -> MakePair:
    """make_pair(features, size=8, allocator=...)."""

    def make(features: int, *, size: int = 8, where: GuestAllocator = allocator) -> Pair:
        return Pair(memory, where, size, features)

    return make
