"""Many resizes of a whole machine on a fake KVM leave it as it was."""

from __future__ import annotations

import gc
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from minivmm.devices.virtio_mem.ledger import MOVES
from minivmm.spec.virtio_mem import MemRequest, MemResponse, RequestType
from minivmm.spec.virtio_pci import CapabilityType
from minivmm.units import KIB, MIB

LARGE = 64 * MIB
"""More than is given back under the lock: it takes a thread."""


class Guest:
    """A virtio-mem driver on the machine's own buses; its doorbells come as exits."""

    def __init__(self, rig: Any, wait: Any) -> None:
        self.rig, self.wait = rig, wait
        self.device = rig.machine.memory_devices["vmem0"]
        self.driver = rig.start_driver()
        with rig.loop.lock:
            self.doorbell = self.driver.address(CapabilityType.NOTIFY)

    def resize(self, size: int) -> None:
        with self.rig.loop.lock:
            before = self.device.plugged_size
            self.device.set_requested_size(size)
        kind = RequestType.PLUG if size > before else RequestType.UNPLUG
        first, blocks = min(size, before), abs(size - before) // self.device.block_size
        addr = self.device.window.base + first
        request = MemRequest(type=kind, addr=addr, nb_blocks=blocks).build()
        ring = self.driver.queues[0]
        ring.add((request,), (MemResponse.SIZE,), direct=0)
        with self.rig.loop.lock:
            self.rig.machine.board.mmio.write(self.doorbell, 2, 0)
        self.wait(lambda: self.device.plugged_size == size)
        self.wait(ring.collect)

    def resizes(self, times: int) -> None:
        for size in (LARGE, 2 * MIB) * (times // 2):
            self.resize(size)
        self.wait(lambda: all(thread.name != "errand" for thread in threading.enumerate()))


def resources() -> tuple[int, int, int]:
    """Bytes that Python has allocated, descriptors, threads."""
    gc.collect()
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    return tracemalloc.get_traced_memory()[0], descriptors, threading.active_count()


def test_resizes_leave_memory_descriptors_and_threads_where_they_were(
    make_rig: Any, wait: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once everything that remembers the last few of something is full, which is soon here."""
    monkeypatch.setattr("minivmm.trace.RING_SIZE", MOVES)
    monkeypatch.setattr("minivmm.devices.virtio_mem.intruders.UNPLUGS_KEPT", MOVES)
    rig = make_rig()
    guest = Guest(rig, wait)
    rig.start()
    tracemalloc.start()
    try:
        guest.resizes(2 * MOVES)
        rig.events.clear()
        before = resources()
        guest.resizes(200)
        rig.events.clear()
        after = resources()
    finally:
        tracemalloc.stop()

    assert after[0] - before[0] < 16 * KIB  # the loop and its threads have some more, or less
    assert after[1:] == before[1:]
