"""Statistics: what the guest tells of its memory, and when it is asked (virtio-spec 5.5.6.3).

The driver leaves a buffer with us; using it asks for the next one, which has newer numbers.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from typing import Any

from minivmm.spec.virtio_balloon import Stat, StatTag
from minivmm.virtio.queue.queue import Chain, VirtQueue

NAMES = {
    StatTag.SWAP_IN: "stat-swap-in",
    StatTag.SWAP_OUT: "stat-swap-out",
    StatTag.MAJFLT: "stat-major-faults",
    StatTag.MINFLT: "stat-minor-faults",
    StatTag.MEMFREE: "stat-free-memory",
    StatTag.MEMTOT: "stat-total-memory",
    StatTag.AVAIL: "stat-available-memory",
    StatTag.CACHES: "stat-disk-caches",
    StatTag.HTLB_PGALLOC: "stat-htlb-pgalloc",
    StatTag.HTLB_PGFAIL: "stat-htlb-pgfail",
}
"""QEMU's names of the statistics."""

UNKNOWN = 2**64 - 1
"""Value of a statistic that the guest did not tell, as QEMU shows it."""

_MOST = 64 * Stat.SIZE
_STAT = struct.Struct("<HQ")

Later = Callable[[float, Callable[[], None]], None]


class Statistics:
    """The guest's numbers. `ask` gets the queue handled; `later` is Errands.later.

    Use with the lock held; queue methods inside handle_queue only.
    """

    def __init__(self, ask: Callable[[], None]) -> None:
        self.later: Later = lambda _seconds, _poll: None
        self.interval = 0
        """Seconds between two questions; 0: none."""
        self.last_update = 0
        """When the last numbers came: seconds since 1970, or 0."""
        self.values = dict.fromkeys(NAMES.values(), UNKNOWN)
        self._ask = ask
        self._buffer: Chain | None = None
        self._wanted = False
        self._polling = False
        self._timers: set[int] = set()
        """Intervals for which a timer runs: drivers that come and go must not add any."""

    def poll_every(self, seconds: int) -> None:
        """Ask now, and then at least every so many seconds; 0 ends it."""
        self.interval = seconds
        self._polling = seconds > 0
        if self._polling:
            self._poll()

    def handle(self, queue: VirtQueue) -> bool:
        """Take new numbers; hand the buffer back if more are wanted. Is an interrupt wanted?"""
        for chain in queue.chains():
            self._take(chain.read(_MOST))
            if self._buffer is not None:  # a second one, which drivers must not supply
                queue.complete(self._buffer)
            self._buffer = chain
        if self._wanted and self._buffer is not None:
            self._wanted = False
            queue.complete(self._buffer)
            self._buffer = None
        return queue.publish()

    def forget_driver(self) -> None:
        """The buffer belongs to the driver again; nobody is left to be asked."""
        self._buffer = None
        self._wanted = False
        self._polling = False

    def save(self) -> dict[str, object]:
        """Values of saved.STATISTICS."""
        return {
            "interval": self.interval,
            "last_update": self.last_update,
            "stats": list(self.values.values()),
            "has_buffer": self._buffer is not None,
            "wanted": self._wanted,
            "polling": self._polling,
        }

    def load(self, saved: Any) -> None:
        """Go on asking; the driver's buffer follows by `adopt`."""
        self.interval = saved.interval
        self.last_update = saved.last_update
        self.values = dict(zip(NAMES.values(), saved.stats, strict=True))
        self._wanted, self._polling = saved.wanted, saved.polling
        self._buffer = None
        if self._polling and self.interval:
            self._look_later()

    def adopt(self, buffer: Chain) -> None:
        """The driver's buffer, which another process had."""
        self._buffer = buffer

    def to_json(self) -> dict[str, object]:
        """As QEMU's property guest-stats."""
        return {"last-update": self.last_update, "stats": dict(self.values)}

    def _poll(self) -> None:
        self._wanted = True
        self._ask()
        self._look_later()

    def _look_later(self) -> None:
        seconds = self.interval
        if seconds not in self._timers:
            self._timers.add(seconds)
            self.later(seconds, lambda: self._due(seconds))

    def _due(self, seconds: int) -> None:
        """A timer has run out; perhaps nobody is to be asked any more, or at another pace."""
        self._timers.discard(seconds)
        if self._polling and seconds == self.interval:
            self._poll()

    def _take(self, data: bytes) -> None:
        """Entries come in any order, those with unknown tags are ignored (5.5.6.3.2)."""
        self.values = dict.fromkeys(NAMES.values(), UNKNOWN)
        self.last_update = int(time.time())
        whole = len(data) - len(data) % _STAT.size
        for tag, value in _STAT.iter_unpack(data[:whole]):
            if tag in NAMES:
                self.values[NAMES[tag]] = value
