"""What giving memory back in bulk would save: a discard a block, or one for all; in microseconds.

Drivers that put many UNPLUG requests into the ring before they ring the doorbell could be served by
one discard for all neighbours. The device does not: see docs/performance.md. This is what it costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.figures import Figure, present
from minivmm.spec.virtio_mem import RequestType
from minivmm.testing.mem_path import BLOCK, MemPath
from minivmm.units import GIB

RUNS = 30
MANY = 64
"""Blocks, neighbours, each in use."""
FIRST = 64


def per_block(work: Callable[[], object]) -> float:
    """Microseconds that `work` on all of them takes, for each."""
    began = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - began) / 1000 / MANY


def plugged(path: MemPath) -> None:
    """Plug them all, and have the guest use them."""
    path.ask(RequestType.PLUG, FIRST, MANY)
    for block in range(FIRST, FIRST + MANY):
        path.touch(block)


def discard(path: MemPath, calls: int) -> float:
    """The host's part alone, in so many calls."""
    length = MANY // calls * BLOCK
    plugged(path)

    def work() -> None:
        for at in range(FIRST * BLOCK, (FIRST + MANY) * BLOCK, length):
            path.device.region.discard(at, length)

    taken = per_block(work)
    path.ask(RequestType.UNPLUG, FIRST, MANY)
    return taken


def unplug(path: MemPath, requests: int) -> float:
    """So many requests in the ring when the doorbell rings, until all are answered."""
    blocks = MANY // requests
    plugged(path)
    for block in range(FIRST, FIRST + MANY, blocks):
        path.add(RequestType.UNPLUG, block, blocks)
    taken = per_block(lambda: path.bench.function.transport.kick(0))
    path.collect()
    return taken


def measure(runs: int = RUNS) -> list[Figure]:
    """Both by turns."""
    with MemPath(GIB) as path:
        calls = [(discard(path, 1), discard(path, MANY)) for _ in range(runs)]
        requests = [(unplug(path, 1), unplug(path, MANY)) for _ in range(runs)]
    rows = (
        (f"discard of {MANY} blocks in use, for each", calls, "a call each"),
        (f"UNPLUG of {MANY} blocks in use, for each", requests, "a request each"),
    )
    return [
        Figure(name, "us", [one for one, _ in pairs], [each for _, each in pairs], peer_name=peer)
        for name, pairs, peer in rows
    ]


if __name__ == "__main__":
    present(measure)
