"""Guest memory in rounds: all of it, then what was written meanwhile, until little enough is left.

A round that is sent while the guest runs keeps to the bandwidth allowed. The last one, when the
guest stands still, does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from minivmm.machine import Machine
from minivmm.memory.ranges import merged
from minivmm.migration.channel import Channel
from minivmm.migration.pages import Packer, pieces
from minivmm.migration.progress import Parameters, Progress
from minivmm.migration.wire import PAGES_DATA, Kind
from minivmm.snapshot import ram
from minivmm.snapshot.dirty import DirtyLog
from minivmm.units import MIB

_SPAN = 256 * MIB
"""Bytes of guest memory whose pages are looked for at once, with the lock held."""

_GRAIN = 256 * 1024
"""Bytes that are not worth another round, whatever the limits are."""

_SHORTEST = 0.02
"""Seconds that are worth sleeping for the sake of the bandwidth."""


class Rounds:
    """Those of one migration, in its thread. Blocks of memory devices must not change meanwhile.

    `wait(seconds)` lets time pass, and raises if there is no use in going on; so do all methods
    here, and MigrationError if the channel breaks, HostError if KVM keeps no log.
    """

    def __init__(
        self,
        machine: Machine,
        channel: Channel,
        parameters: Parameters,
        progress: Progress,
        *,
        wait: Callable[[float], None],
        on_round: Callable[[], None],
    ) -> None:
        self._memory = machine.board.memory
        self._machine = machine
        self._lock = machine.loop.lock
        self._channel = channel
        self._parameters = parameters
        self._progress = progress
        self._wait = wait
        self._on_round = on_round
        self._dirty = DirtyLog()
        self._packer = Packer(self._send)
        self._left: list[tuple[int, int]] = []
        """What was found written and not sent yet."""
        self._paid = 0.0
        """Up to when, by the clock, what was sent uses the bandwidth up."""
        self._slept = 0.0
        """Seconds that were waited for the sake of the bandwidth."""

    def begin(self) -> None:
        """Remember from now on what is written."""
        with self._lock:
            self._dirty.begin(self._machine)

    def end(self) -> None:
        """Remember nothing more. Harmless when repeated."""
        with self._lock:
            self._dirty.end()

    def send_all(self) -> None:
        """The first round. What was never touched is not read, let alone sent."""
        with self._lock:
            there = ram.plugged(self._memory)
        self._progress.total = self._progress.remaining = sum(piece.size for piece in there)
        self._begin_round()
        for piece in there:
            for gpa, size in pieces(piece.gpa, piece.size, _SPAN):
                with self._lock:
                    touched = list(ram.populated(self._memory, gpa, size))
                end = gpa
                for start, length in touched:
                    self._packer.add_zeroes(end, start - end)
                    self._send_range(start, length)
                    end = start + length
                self._packer.add_zeroes(end, gpa + size - end)
        self._packer.flush()

    def send_dirty(self) -> None:
        """Further rounds, until what is left can be sent within the downtime limit."""
        progress = self._progress
        began, sent, slept = progress.began, 0, 0.0
        while True:
            now = time.monotonic()
            with self._lock:
                self._left = self._dirty.collect()
            left = sum(size for _, size in self._left)
            passed = max(now - began, 1e-6)
            progress.remaining = left
            progress.dirty_rate = left / passed
            # Sleeping for the bandwidth is none of the link's business.
            progress.speed = (progress.sent - sent) / max(passed - self._slept + slept, 1e-6)
            if left <= max(_GRAIN, progress.speed * self._parameters.downtime_limit / 1000):
                return
            began, sent, slept = now, progress.sent, self._slept
            self._begin_round()
            self._send_ranges(self._left)

    def send_last(self) -> None:
        """The round while the guest stands still: what was left, and was written since."""
        with self._lock:
            ranges = merged([*self._left, *self._dirty.collect()])
        self._progress.remaining = sum(size for _, size in ranges)
        self._begin_round()
        self._send_ranges(ranges)

    def _begin_round(self) -> None:
        self._progress.rounds += 1
        self._on_round()

    def _send_ranges(self, ranges: Iterable[tuple[int, int]]) -> None:
        for gpa, size in ranges:
            self._send_range(gpa, size)
        self._packer.flush()

    def _send_range(self, gpa: int, size: int) -> None:
        for at, some in pieces(gpa, size, PAGES_DATA):
            self._packer.add(at, bytes(self._memory.peek(at, some)))

    def _send(self, payload: bytes, data: int, zeroes: int) -> None:
        """A frame that stands for so many bytes of guest memory."""
        self._wait(0.0)
        before = self._channel.sent
        self._channel.level = self._parameters.compress_level
        self._channel.send(Kind.PAGES, payload)
        progress = self._progress
        progress.data += data
        progress.zeroes += zeroes
        progress.remaining = max(0, progress.remaining - data - zeroes)
        progress.sent = self._channel.sent
        if progress.stopped is None:
            self._pay(self._channel.sent - before)

    def _pay(self, size: int) -> None:
        """Wait as long as so many bytes take at the speed that is allowed."""
        limit, now = self._parameters.max_bandwidth, time.monotonic()
        self._paid = max(self._paid, now) + (size / limit if limit else 0.0)
        if self._paid > now + _SHORTEST:
            self._wait(self._paid - now)
            self._slept += time.monotonic() - now
