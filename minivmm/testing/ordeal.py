"""Ordeal: a device and a driver that keeps to no rule, and the one check of what comes of it (C.7).

    ordeal.raw.offer(Raw(0x8000, 24), Raw(1 << 63, 10, WRITE))
    ordeal.check(BROKEN, "not in guest RAM")

Whatever the driver did: no exception leaves the device, and none of ours is behind NEEDS_RESET; the
work is bounded; only memory that the driver granted is written; and a reset makes all good again.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from enum import Enum
from functools import cache
from types import FrameType

from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.spec.virtio import DeviceStatus, Feature
from minivmm.testing.conversations import Kind
from minivmm.testing.driver import DeviceBench, VirtioPciDriver
from minivmm.testing.raw_ring import RawRing, raw
from minivmm.trace import Event
from minivmm.units import MIB

MOST_CALLS = 100_000
"""Calls that a doorbell, or a turn of the event loop, may cost: 3000 descriptors take most."""
MOST_BYTES = 64 * MIB
"""Bytes of guest memory that it may read or write."""

_TURNS = 4
_RAM = 16 * MIB
_CONFIG_VECTOR = 0


class Outcome(Enum):
    """The states that a misdeed may end in."""

    ANSWERED = "buffers came back"
    IGNORED = "nothing happened"
    BROKEN = "NEEDS_RESET, and a trace event says why"


class Ordeal:
    """A device of `kind`, started with all it offers but `without` (bits)."""

    def __init__(
        self, kind: Kind, *, packed: bool, size: int | None = None, without: int = 0
    ) -> None:
        self.kind = kind
        self.packed = packed
        self.bench = DeviceBench(kind.make(packed=packed, queue_size=size))
        self.driver.probe()
        self.features = self.driver.offered_features() & ~without
        self.restart()

    @property
    def driver(self) -> VirtioPciDriver:
        """The proper driver behind it."""
        return self.bench.driver

    @property
    def negotiated_tables(self) -> bool:
        """May descriptors be indirect?"""
        return bool(self.features & Feature.INDIRECT_DESC.mask)

    def restart(self, *, size: int | None = None) -> None:
        """Reset the device and set it up again."""
        self.driver.start(self.features, size=size)
        self.follow_ring()

    def follow_ring(self) -> None:
        """Have `raw` be the ring that the driver has set up for `kind.queue` by now."""
        self.raw: RawRing = raw(self.driver.queues[self.kind.queue])
        """The ring of `kind.queue`."""

    def begin(self) -> None:
        """Reset, and stop before any queue is set up."""
        self.driver.probe()
        self.driver.reset()
        assert self.driver.negotiate(self.features)
        self.driver.enable_msix()
        self.driver.set("config_msix_vector", _CONFIG_VECTOR)

    def put(self, data: bytes, *, alignment: int = 16) -> int:
        """Guest physical address of a new copy of `data`."""
        gpa = self.bench.allocator.take(max(len(data), 1), alignment)
        self.bench.memory.write(gpa, data)
        return gpa

    def kick(self) -> None:
        """The doorbell of `kind.queue`."""
        self.bench.function.transport.kick(self.kind.queue)

    def check(
        self,
        outcome: Outcome | None,
        why: str = "",
        *,
        act: Callable[[], None] | None = None,
        changes: bool = False,
    ) -> list[tuple[int, int]]:
        """Ring the doorbell, or `act`; what came of it must be `outcome`, for a reason like `why`.

        With None any outcome will do. The device's configuration may have changed only with
        `changes`. Then the device is reset, and must be as good as new. Returns (head or id,
        length) of what came back before that, if `outcome` is not BROKEN.
        """
        bench = self.bench
        bench.irq.take()
        self.driver.isr()
        config = bench.device.config_space()
        self._remember()
        told = len(bench.events("broken"))
        work = _Work(bench)
        work.measure(act or self.kick)
        for _ in range(_TURNS):
            work.measure(lambda: bench.defer.run(len(bench.defer.waiting)))
        self._check_memory()
        assert changes or bench.device.config_space() == config
        broken = bench.events("broken")[told:]
        if outcome is None:
            outcome = Outcome.BROKEN if broken else None
        used: list[tuple[int, int]] = []
        if outcome is Outcome.BROKEN:
            self._check_broken(broken, why)
        else:
            assert not broken, f"broken: {broken[0].fields}"
            assert DeviceStatus.NEEDS_RESET not in self.driver.status
        if outcome in (Outcome.ANSWERED, Outcome.IGNORED):
            used = self.raw.used()
            assert bool(used) is (outcome is Outcome.ANSWERED), f"came back: {used}"
        self._check_that_reset_heals()
        return used

    # -- inside ------------------------------------------------------------------------------------

    def _check_broken(self, broken: list[Event], why: str) -> None:
        """It says why, once, and tells the driver, once; from then on it does nothing."""
        bench = self.bench
        assert len(broken) == 1, f"{len(broken)} events tell that the device is broken"
        assert "traceback" not in broken[0].fields, broken[0].fields["traceback"]
        assert re.search(why, str(broken[0].fields["why"])), broken[0].fields["why"]
        status = self.driver.status
        assert DeviceStatus.NEEDS_RESET in status
        if DeviceStatus.DRIVER_OK in status:
            assert bench.irq.take().count(_CONFIG_VECTOR) == 1
            assert self.driver.isr() == 2
        self._remember()
        for index in range(len(bench.function.transport.queue_registers)):
            bench.function.transport.kick(index)
        bench.defer.run()
        assert bench.irq.take() == []
        assert not self._changed()

    def _check_memory(self) -> None:
        """Nothing changed but what the driver granted (SPL-D-2, PKD-D-2)."""
        if not self._changed():
            return
        before, after = _pictures()
        granted = self.raw.granted + self.raw.device_parts
        for at in range(0, _RAM, 4096):
            if before[at : at + 4096] == after[at : at + 4096]:
                continue
            for gpa in range(at, at + 4096):
                if before[gpa] != after[gpa]:
                    inside = any(start <= gpa < start + size for start, size in granted)
                    assert inside, f"the device wrote at {gpa:#x}"

    def _check_that_reset_heals(self) -> None:
        bench = self.bench
        self.driver.reset()
        assert self.driver.status == DeviceStatus(0)
        bench.irq.take()
        self._remember()
        bench.defer.run()
        assert (self._changed(), bench.irq.take()) == (False, [])
        self.driver.start(self.features)
        self.kind.converse(bench)
        assert DeviceStatus.NEEDS_RESET not in self.driver.status
        if isinstance(bench.device, VirtioMem):
            _check_blocks(bench.device)

    def _remember(self) -> None:
        """Take a picture of all RAM."""
        memoryview(_pictures()[0])[:] = self.bench.memory.view(0, _RAM)

    def _changed(self) -> bool:
        """Take another one; do they differ?"""
        before, after = _pictures()
        memoryview(after)[:] = self.bench.memory.view(0, _RAM)
        return before != after

    def close(self) -> None:
        """Unmap guest memory."""
        self.bench.device.close()
        self.bench.close()


@cache
def _pictures() -> tuple[bytearray, bytearray]:
    """Room for two pictures of RAM; new room for each would take fifty times as long."""
    return bytearray(_RAM), bytearray(_RAM)


class _Work:
    """Counts what the device does, so that a bound does not depend on the host's speed."""

    def __init__(self, bench: DeviceBench) -> None:
        self._bench = bench

    def measure(self, act: Callable[[], object]) -> None:
        """Raises AssertionError if `act` was too much."""
        memory = self._bench.memory
        read, write = memory.read, memory.write
        calls = moved = 0

        def count(frame: FrameType, event: str, argument: object) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        def counting_read(gpa: int, length: int) -> bytes:
            nonlocal moved
            moved += length
            return read(gpa, length)

        def counting_write(gpa: int, data: bytes) -> None:
            nonlocal moved
            moved += len(data)
            write(gpa, data)

        vars(memory).update(read=counting_read, write=counting_write)
        sys.setprofile(count)
        try:
            act()
        finally:
            sys.setprofile(None)
            del vars(memory)["read"], vars(memory)["write"]
        assert calls <= MOST_CALLS, f"{calls} calls"
        assert moved <= MOST_BYTES, f"{moved} bytes moved"


def _check_blocks(device: VirtioMem) -> None:
    """Plugged is what is in plugged blocks, and unplugged blocks take no host memory (MEM-D-3)."""
    state = device.state
    runs = state.plugged_ranges(0, state.window.size)
    assert sum(length for _, length in runs) == device.plugged_size
    for offset, length in state.unplugged_ranges():
        assert device.region.resident_in(offset, length) == 0
