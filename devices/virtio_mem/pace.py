"""How much host work may be done under the lock: what takes no time worth a thread.

To hand work to a thread costs some hundred microseconds and puts the vCPU to sleep. To discard
memory costs nothing if it was never touched, a few microseconds for each huge page, and a hundred
times that in small pages. Which of these it is shows only afterwards, so the last time counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from minivmm.units import MIB

LEAST = 16 * MIB
"""Bytes that may always be worked on under the lock: a millisecond or so, of small pages."""
MOST = 128 * MIB
"""Bytes that may be after all: 10 ms if this time they are small pages. Linux' unit on x86-64."""
QUICK = 0.0005
"""Seconds that work under the lock should take at most."""


class Pace:
    """Judges work of more than LEAST bytes by how long such work took last; from any thread."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.at_once = LEAST
        """Bytes of work that is to be done under the lock now."""
        self._clock = clock

    def timed(self, length: int, work: Callable[[], None]) -> Callable[[], None]:
        """`work` on `length` bytes, from which it is learned."""

        def measured() -> None:
            began = self._clock()
            work()
            seconds = self._clock() - began
            manageable = MOST if seconds <= 0 else int(length * QUICK / seconds)
            self.at_once = min(max(LEAST, manageable), MOST)

        return measured
