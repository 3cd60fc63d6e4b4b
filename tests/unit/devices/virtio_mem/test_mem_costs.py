"""What a request costs does not grow with the region, nor with what else is plugged in it.

Counted, not timed: bytecode instructions, calls into C, bytes of the block model that these calls
look at, bytes of memory allocated, and what is asked of the host.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, SupportsIndex

from minivmm.memslots import Memslots
from minivmm.spec.virtio_mem import MemRequest, MemResponse, RequestType
from minivmm.testing import instructions
from minivmm.testing.fake_kvm import FakeVm
from minivmm.testing.fake_queue import FakeChain, FakeQueue
from minivmm.testing.mem_bench import MemBench
from minivmm.units import GIB, MIB, TIB

BLOCK = 2 * MIB
MANY = 64
"""Blocks of a request: what Linux asks for at a time (128 MiB)."""

SIZES = (GIB, 16 * TIB)


@dataclass
class Cost(instructions.Cost):
    looked_at: int = 0
    """Bytes of the block model, one a block."""


class WatchedStates(bytearray):
    """The block model's array, which notes how much of it is looked at or written."""

    cost = Cost()

    def count(self, *arguments: Any) -> int:
        self._note(*arguments[1:])
        return super().count(*arguments)

    def find(self, *arguments: Any) -> int:
        found = super().find(*arguments)
        start, end = (*arguments[1:], len(self))[:2] if len(arguments) > 1 else (0, len(self))
        self._note(start, end if found < 0 else found + 1)
        return found

    def __setitem__(self, at: SupportsIndex | slice, value: Any) -> None:
        if isinstance(at, slice):
            self._note(*at.indices(len(self))[:2])
        super().__setitem__(at, value)

    def _note(self, start: int = 0, end: int | None = None) -> None:
        self.cost.looked_at += (len(self) if end is None else end) - start


@contextmanager
def counted(bench: MemBench) -> Iterator[Cost]:
    """Counts what happens inside, in this thread."""
    cost = WatchedStates.cost = Cost()
    blocks = bench.device.blocks
    blocks._states = WatchedStates(blocks._states)

    try:
        with instructions.counted(cost):
            yield cost
    finally:
        WatchedStates.cost = Cost()


@contextmanager
def machine(size: int, *, prealloc: bool = False) -> Iterator[MemBench]:
    """A device with memslots; its usable region is all of it."""
    with MemBench(
        size=size, requested_size=size, block_size=BLOCK, protect="report", prealloc=prealloc
    ) as bench:
        bench.memory.subscribe(Memslots(FakeVm(), 32764, sparse=size, block=BLOCK))
        yield bench


def ask(bench: MemBench, kind: RequestType, first: int) -> Callable[[], None]:
    """The device's part of a request for MANY blocks from `first`; it must be acknowledged."""
    request = MemRequest(type=kind, addr=bench.driver.address(first), nb_blocks=MANY).build()
    chain = FakeChain(request, MemResponse.SIZE)
    queue = FakeQueue(chain)

    def serve() -> None:
        bench.device.handle_queue(0, queue)
        assert chain.written[:2] == bytes(2)

    return serve


def costs(bench: MemBench, first: int) -> dict[str, Cost]:
    """Of each request, for MANY blocks from `first`, which are unplugged before and after.

    Each is made once before it is counted, so that everything lazy is there.
    """
    found = {}
    for counting in (False, True):
        for kind in (RequestType.PLUG, RequestType.STATE, RequestType.UNPLUG):
            serve = ask(bench, kind, first)
            if counting:
                with counted(bench) as found[kind.name]:
                    serve()
            else:
                serve()
    return found


def test_a_request_costs_the_same_in_a_gibibyte_and_in_16_tebibytes() -> None:
    """At the start and at the end of the region: not one instruction more."""
    found = []
    for size in SIZES:
        with machine(size) as bench:
            found += [costs(bench, 0), costs(bench, size // BLOCK - MANY)]

    assert all(cost == found[0] for cost in found)
    for cost in found[0].values():
        assert 100 < cost.instructions < 3000
        assert cost.calls < 300
        assert MANY <= cost.looked_at <= 3 * MANY


def test_scattered_blocks_elsewhere_cost_a_request_next_to_nothing() -> None:
    """Every 16th block of 16 GiB is plugged, 512 runs: memslots are searched by bisection."""
    with machine(SIZES[1]) as bench:
        first = 16 * GIB // BLOCK
        before = costs(bench, first)
        for block in range(0, first, 16):
            bench.driver.plug(block)
        after = costs(bench, first)

    for name, cost in before.items():
        assert after[name].instructions <= 1.1 * cost.instructions
        assert after[name].calls <= 1.1 * cost.calls
        assert after[name].looked_at == cost.looked_at


def test_a_request_allocates_next_to_nothing() -> None:
    """Nothing as long as the array of 16 TiB of blocks, which has 8 MiB.

    Threads that earlier tests left behind allocate as well, so the least of a few tries counts.
    """
    with machine(SIZES[1]) as bench:
        costs(bench, 0)
        peak = min(peak_of_plug_and_unplug(bench) for _ in range(5))

    assert peak < 16 * 1024


def peak_of_plug_and_unplug(bench: MemBench) -> int:
    serves = [ask(bench, kind, 0) for kind in (RequestType.PLUG, RequestType.UNPLUG)]
    tracemalloc.start()
    try:
        for serve in serves:
            serve()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_host_is_asked_for_exactly_what_a_request_covers() -> None:
    with machine(SIZES[1], prealloc=True) as bench:
        asked: list[tuple[str, int, int]] = []

        def watch(name: str) -> None:
            def call(offset: int, length: int, *_access: object) -> None:
                asked.append((name, offset, length))

            setattr(bench.region, name, call)

        for name in ("populate", "discard", "protect"):
            watch(name)
        bench.driver.plug(100, 4)
        bench.driver.unplug(100, 4)

    names = ("protect", "populate", "protect", "discard")
    assert asked == [(name, 100 * BLOCK, 4 * BLOCK) for name in names]
