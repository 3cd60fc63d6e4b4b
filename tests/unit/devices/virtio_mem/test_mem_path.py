"""The whole path of a request, from the doorbell to the interrupt: what it costs, what it leaves.

Counted, not timed; benchmarks/request.py times it.
"""

from __future__ import annotations

import gc
import threading
import tracemalloc
from pathlib import Path

import pytest

from minivmm.devices.virtio_mem.ledger import MOVES
from minivmm.spec.virtio_mem import RequestType
from minivmm.testing.instructions import Cost, counted
from minivmm.testing.mem_path import BLOCK, MemPath
from minivmm.units import GIB, KIB, TIB

MOST_INSTRUCTIONS = {RequestType.PLUG: 3100, RequestType.UNPLUG: 3200, RequestType.STATE: 2350}
"""Of a request for 64 blocks. A core of 2026 with nothing else to do takes 10 us for 1000."""


def cost(path: MemPath, kind: RequestType) -> Cost:
    found = Cost()
    path.ask(kind, 64, 64, counted(found))
    return found


def costs(path: MemPath) -> dict[RequestType, Cost]:
    """Of a second round, when everything lazy is there."""
    for _ in range(2):
        found = {kind: cost(path, kind) for kind in (RequestType.PLUG, RequestType.STATE)}
        found[RequestType.UNPLUG] = cost(path, RequestType.UNPLUG)
    return found


@pytest.mark.parametrize("packed", [False, True])
def test_a_request_takes_few_instructions_from_doorbell_to_interrupt(packed: bool) -> None:
    with MemPath(GIB, packed=packed) as path:
        for kind, found in costs(path).items():
            assert 1000 < found.instructions <= MOST_INSTRUCTIONS[kind], kind.name


def test_the_whole_path_costs_the_same_in_a_gibibyte_and_in_16_tebibytes() -> None:
    with MemPath(GIB) as small, MemPath(16 * TIB) as large:
        assert costs(small) == costs(large)


def resources() -> tuple[int, int, int]:
    """Bytes that Python has allocated, descriptors, threads."""
    gc.collect()
    allocated = tracemalloc.get_traced_memory()[0]
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    return allocated, descriptors, threading.active_count()


def test_resizes_leave_memory_descriptors_and_threads_where_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once everything that remembers the last few of something is full, which is soon here."""
    monkeypatch.setattr("minivmm.trace.RING_SIZE", MOVES)
    monkeypatch.setattr("minivmm.devices.virtio_mem.intruders.UNPLUGS_KEPT", MOVES)
    tracemalloc.start()
    try:
        with MemPath(GIB) as path:
            for size in (64, 1) * MOVES:
                path.resize(size * BLOCK)
            before = resources()
            for size in (64, 1) * 100:
                path.resize(size * BLOCK)
            after = resources()
    finally:
        tracemalloc.stop()

    assert after[0] - before[0] < 4 * KIB
    assert after[1:] == before[1:]
