"""Accesses to unplugged blocks: who, where, when. What is done about them is the machine's policy.

A vCPU's access gets here where it finds no memslot: KVM then leaves it to us, as it would an access
to a device's registers. Accesses of our own devices are told of by GuestMemory, which refuses them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from minivmm.devices.virtio_mem.saved import age, moment
from minivmm.memory.guest import Occupancy
from minivmm.memory.layout import Window
from minivmm.memory.region import Region
from minivmm.units import align_up

KEPT = 64
"""Intrusions remembered for inspect(); all are counted."""

UNPLUGS_KEPT = 1024
"""Unplug requests remembered, newest first to be looked at: what was unplugged before is old."""

_DIRECTIONS = {True: "wrote", False: "read", None: "accessed"}


@dataclass(frozen=True, slots=True)
class Intrusion:
    """An access to a block that is not plugged."""

    source: str
    """"cpu", or "dma" for our own devices."""
    vcpu: int | None
    rip: int | None
    """Instruction pointer; after a write KVM gives that of the next instruction."""
    gpa: int
    size: int
    """Bytes."""
    write: bool | None
    """None if the source did not say."""
    block: int
    """Number of the (first) block."""
    block_start: int
    """Its guest physical address."""
    block_size: int
    age: float | None
    """Seconds since the block was unplugged; None if it was not, as far as is remembered."""
    time: float
    """When, in seconds of CLOCK_MONOTONIC."""

    def __str__(self) -> str:
        who = "DMA" if self.vcpu is None else f"cpu{self.vcpu}"
        if self.rip is not None:
            who += f" at rip {self.rip:#x}"
        end = self.block_start + self.block_size - 1
        since = "not lately either" if self.age is None else f"unplugged {self.age:.1f} s ago"
        return (
            f"{who} {_DIRECTIONS[self.write]} {self.size} bytes at gpa {self.gpa:#x}: block"
            f" {self.block} ({self.block_start:#x}-{end:#x}) is not plugged, {since}"
        )


class Tracer(Protocol):
    """Signals.trace of the device."""

    def __call__(self, name: str, **fields: object) -> None:
        """Record that `name` happened."""


class Intruders:
    """The BusDevice for a region's whole `window`; the lock is held in every method.

    VirtioMem.__init__ makes it with what it has (signals come later, hence the lambda):

        self.intruders = Intruders(
            block_size=spec.block_size,
            window=window,
            region=region,
            occupancy=self.state,
            trace=lambda name, **fields: self.signals.trace(name, **fields),
        )
    """

    def __init__(
        self,
        *,
        block_size: int,
        window: Window,
        region: Region,
        occupancy: Occupancy,
        trace: Tracer,
    ) -> None:
        self._block_size = block_size
        self._window = window
        self._region = region
        self._occupancy = occupancy
        self._trace = trace
        self._unplugs: deque[tuple[int, int, float]] = deque(maxlen=UNPLUGS_KEPT)
        self.count = 0
        """Intrusions so far."""
        self.recent: deque[Intrusion] = deque(maxlen=KEPT)
        """The last of them, oldest first."""
        self.accessor: Callable[[], tuple[int, int] | None] = lambda: None
        """Gives number and instruction pointer of the vCPU whose access is being served."""
        self.on_intrusion: Callable[[Intrusion], None] = lambda _intrusion: None
        """Called with each, once it is recorded."""

    def read(self, offset: int, size: int) -> int:
        """What a vCPU gets: 0, and it is an intrusion unless unplugged memory may be read.

        (MEM-D-20). If the block was plugged since KVM saw the access, then what is in it.
        """
        if self._occupancy.covers(offset, size):
            return int.from_bytes(self._region.peek(offset, size), "little")
        if offset + size > self._occupancy.readable:
            self._record_cpu(offset, size, write=False)
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Dropped and an intrusion, unless the block was plugged since KVM saw the access."""
        if self._occupancy.covers(offset, size):
            low = value & (1 << 8 * size) - 1
            self._region.view(offset, size)[:] = low.to_bytes(size, "little")
        else:
            self._record_cpu(offset, size, write=True)

    def dma(self, offset: int, length: int) -> None:
        """GuestMemory refused one of our devices `length` bytes at `offset` of the region."""
        self._record("dma", None, None, offset, length, None)

    def unplugged(self, first: int, count: int, now: float) -> None:
        """`count` blocks from number `first`, all of them plugged before, were unplugged at `now`.

        `now` is CLOCK_MONOTONIC in seconds.
        """
        self._unplugs.append((first, count, now))

    def save(self, now: float) -> dict[str, object]:
        """How many there were, and what was unplugged when; the accesses themselves are history."""
        unplugs = [
            {"first": first, "count": count, "at": age(then, now)}
            for first, count, then in self._unplugs
        ]
        return {"intrusions": self.count, "unplugs": unplugs}

    def load(self, saved: Any, now: float) -> None:
        """Take over what `save` gave."""
        self.count = saved.intrusions
        self.recent.clear()
        self._unplugs.clear()
        for one in saved.unplugs:
            then = moment(one.at, now)
            if then is not None:
                self._unplugs.append((one.first, one.count, then))

    def inspect(self) -> dict[str, object]:
        """How many there were, and lines on the last few."""
        return {"count": self.count, "recent": [str(intrusion) for intrusion in self.recent]}

    def _record_cpu(self, offset: int, size: int, *, write: bool) -> None:
        vcpu, rip = self.accessor() or (None, None)
        self._record("cpu", vcpu, rip, offset, size, write)

    def _record(
        self,
        source: str,
        vcpu: int | None,
        rip: int | None,
        offset: int,
        size: int,
        write: bool | None,
    ) -> None:
        now = time.monotonic()
        block = self._first_unplugged(offset, size)
        intrusion = Intrusion(
            source=source,
            vcpu=vcpu,
            rip=rip,
            gpa=self._window.base + offset,
            size=size,
            write=write,
            block=block,
            block_start=self._window.base + block * self._block_size,
            block_size=self._block_size,
            age=self._age(block, now),
            time=now,
        )
        self.count += 1
        self.recent.append(intrusion)
        self._trace("intrusion", what=str(intrusion), **_facts(intrusion))
        self.on_intrusion(intrusion)

    def _first_unplugged(self, offset: int, size: int) -> int:
        """Number of the first block of an access that may not be accessed."""
        block = offset // self._block_size
        start = block * self._block_size
        length = align_up(offset + size, self._block_size) - start
        at, run = next(self._occupancy.plugged_ranges(start, length), (start, 0))
        if at > start or run == length:  # run == length: plugged, but on its way out
            return block
        return (at + run) // self._block_size

    def _age(self, block: int, now: float) -> float | None:
        for first, count, then in reversed(self._unplugs):
            if first <= block < first + count:
                return now - then
        return None


def _facts(intrusion: Intrusion) -> dict[str, object]:
    """What an event tells of it beside the text; only what is known."""
    facts: dict[str, object] = {
        "gpa": intrusion.gpa,
        "size": intrusion.size,
        "block": intrusion.block,
        "vcpu": intrusion.vcpu,
        "rip": None if intrusion.rip is None else f"{intrusion.rip:#x}",
        "write": intrusion.write,
    }
    return {key: value for key, value in facts.items() if value is not None}
