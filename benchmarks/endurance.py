"""What 10,000 resizes leave behind: memory, descriptors and threads of the process that does them.

A resize is a new target from the host and the driver's request that reaches it, up and down by
turns. Everything that remembers the last few of something is full before it counts.
"""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

from benchmarks.figures import Figure, present
from minivmm.testing.mem_path import BLOCK, MemPath
from minivmm.units import GIB, KIB

RUNS = 3
RESIZES = 10_000
WARM_UP = 5_000
"""Resizes before; the events of half as many fill the trace's ring."""
MOST_KIB = 64
"""What the allocators of C and Python may hold more at one moment than at another."""
MANY = 64
"""Blocks of a resize."""


def resize(path: MemPath, times: int) -> None:
    """Grow and shrink by turns."""
    for size in (1 + MANY, 1) * (times // 2):
        path.resize(size * BLOCK)


def resources() -> tuple[float, int, int]:
    """KiB of memory, open descriptors, threads of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    resident = pages * os.sysconf("SC_PAGE_SIZE") / KIB
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    return resident, descriptors, threading.active_count()


def measure(runs: int = RUNS) -> list[Figure]:
    """How much more of each there is afterwards."""
    grown = []
    with MemPath(GIB) as path:
        resize(path, WARM_UP)
        for _ in range(runs):
            before = resources()
            resize(path, RESIZES)
            grown.append([after - was for after, was in zip(resources(), before, strict=True)])
    memory, descriptors, threads = zip(*grown, strict=True)
    what = f"left by {RESIZES:,} resizes"
    return [
        Figure(f"memory {what}", "KiB", memory, at_most=MOST_KIB),
        Figure(f"descriptors {what}", "", descriptors, at_most=0),
        Figure(f"threads {what}", "", threads, at_most=0),
    ]


if __name__ == "__main__":
    present(measure)
