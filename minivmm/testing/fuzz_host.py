"""The host of a fuzzed machine: memory and messages that are watched, work and time that wait.

Everything is deterministic: no threads, no clocks; what a host does late is done when a step says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from minivmm.irq import InterruptController, IrqLine, MsiRoute
from minivmm.memory.backing import Backing
from minivmm.memory.guest import GuestMemory
from minivmm.memory.region import Access
from minivmm.testing.flaky_region import FlakyRegion

MOST_VIEWS = 400_000
"""Accesses to guest memory in one step; a step has a few bursts of 3000 descriptors at most."""
MOST_COPIED = 1 << 30
"""Bytes copied in one step: a burst of the disk copies 40 MiB, and a step has a few bursts."""


class Violation(AssertionError):
    """A device did what it must never do; the first word of the text names the rule."""


def require(condition: object, rule: str, what: object = "") -> None:
    """Raises Violation of `rule` unless `condition`."""
    if not condition:
        raise Violation(f"{rule}: {what}")


class WatchedMemory(GuestMemory):
    """Guest memory that counts accesses, and checks each by means of its own.

    `allowed(gpa, length)` says if all of that may be touched now.
    """

    def __init__(self) -> None:
        super().__init__()
        self.allowed: Callable[[int, int], bool] = lambda _gpa, _length: True
        self.views = 0
        self.copied = 0
        self.discards = 0

    def begin(self) -> None:
        """Count anew."""
        self.views = self.copied = self.discards = 0

    def view(self, gpa: int, length: int) -> memoryview:
        """As GuestMemory. Raises Violation for what must not be touched, or for too much."""
        return self._watched(super().view(gpa, length), gpa, length)

    def peek(self, gpa: int, length: int) -> memoryview:
        """The same."""
        return self._watched(super().peek(gpa, length), gpa, length)

    def _watched(self, view: memoryview, gpa: int, length: int) -> memoryview:
        self.views += 1
        if self.views > MOST_VIEWS:
            raise Violation(f"unbounded: {self.views} accesses to guest memory")
        if len(view) != length or not self.allowed(gpa, length):
            raise Violation(f"outside: {length} bytes at {gpa:#x}")
        return view

    def read(self, gpa: int, length: int) -> bytes:
        """As GuestMemory."""
        self._count(length)
        return super().read(gpa, length)

    def write(self, gpa: int, data: bytes) -> None:
        """As GuestMemory."""
        self._count(len(data))
        super().write(gpa, data)

    def discard(self, gpa: int, length: int) -> int:
        """As GuestMemory."""
        self.discards += 1
        if self.discards > MOST_VIEWS:
            raise Violation(f"unbounded: {self.discards} discards")
        return super().discard(gpa, length)

    def _count(self, length: int) -> None:
        self.copied += length
        if self.copied > MOST_COPIED:
            raise Violation(f"unbounded: {self.copied} bytes copied")

    @contextmanager
    def untouched(self, why: str) -> Iterator[None]:
        """Raises Violation if anything of guest memory is touched inside."""
        before = self.views, self.discards
        yield
        if (self.views, self.discards) != before:
            raise Violation(f"touched: guest memory was accessed {why}")


class LedgerRegion(FlakyRegion):
    """Device memory of `blocks` equal blocks that knows which of them may hold host memory.

    Each is taken by any access, and given back by a discard of all of it.
    """

    def __init__(self, size: int, backing: Backing, blocks: int) -> None:
        super().__init__(size, backing, blocks)
        self.held: set[int] = set()

    def view(self, offset: int, length: int) -> memoryview:
        """As Region. Raises Violation for memory that is protected: the process would be gone."""
        if length:
            blocks = range(offset // self._block, (offset + length - 1) // self._block + 1)
            for block in blocks:
                if self.access[block] is not Access.ALL:
                    raise Violation(f"protected: block {block} is accessed")
            self.held.update(blocks)
        return super().view(offset, length)

    def peek(self, offset: int, length: int) -> memoryview:
        """The same: reading, too, may take host memory."""
        return self.view(offset, length)

    def discard(self, offset: int, length: int) -> None:
        """As FlakyRegion."""
        super().discard(offset, length)
        first = -(-offset // self._block)
        self.held.difference_update(range(first, (offset + length) // self._block))


class WatchedRoute:
    """A message of a device that may send only while `allowed`."""

    def __init__(self, real: MsiRoute, allowed: Callable[[], bool]) -> None:
        self._real = real
        self._allowed = allowed

    def route(self, address: int, data: int) -> None:
        """irq.MsiRoute."""
        self._real.route(address, data)

    def signal(self) -> None:
        """irq.MsiRoute. Raises Violation if it must not (PCI-D-32, GEN-D-1)."""
        if not self._allowed():
            raise Violation("silence: a message of a device that must not send any")
        self._real.signal()


class WatchedInterrupts:
    """irq.InterruptController of one device; `allowed` is set once the device exists."""

    def __init__(self, real: InterruptController) -> None:
        self.allowed: Callable[[], bool] = lambda: False
        self._real = real

    def line(self, gsi: int) -> IrqLine:
        """The real one."""
        return self._real.line(gsi)

    def msi(self) -> MsiRoute:
        """A watched one."""
        return WatchedRoute(self._real.msi(), lambda: self.allowed())


class LateJob:
    """Work that was handed over and is not begun; Errands' Job."""

    def __init__(self, work: Callable[[], None], done: Callable[[], None]) -> None:
        self.over = False
        self.error: BaseException | None = None
        self._work = work
        self._done = done

    def wait(self) -> None:
        """Do it now, unless it was done."""
        if self.over:
            return
        try:
            self._work()
        except Exception as error:
            self.error = error
        self.over = True

    def conclude(self) -> None:
        """Do it, and tell."""
        self.wait()
        self._done()


class LateErrands:
    """Errands that are done when a step says so, in order."""

    def __init__(self) -> None:
        self.jobs: list[LateJob] = []
        self.looks: list[Callable[[], None]] = []

    @property
    def unfinished(self) -> int:
        """Jobs that are not over."""
        return sum(not job.over for job in self.jobs)

    def aside(self, work: Callable[[], None], done: Callable[[], None]) -> LateJob:
        """Keep it for `work_off`."""
        job = LateJob(work, done)
        self.jobs.append(job)
        return job

    def later(self, seconds: float, look: Callable[[], None]) -> None:
        """Keep it for `pass_time`."""
        self.looks.append(look)

    def work_off(self) -> int:
        """Do what has been handed over; how many jobs that were."""
        jobs, self.jobs = self.jobs, []
        for job in jobs:
            job.conclude()
        return len(jobs)

    def pass_time(self) -> None:
        """So much time passes that every look that waits is due."""
        looks, self.looks = self.looks, []
        for look in looks:
            look()
