"""After a BUSY: tells the driver when trying again makes sense.

A driver that was told BUSY waits for 50 to 300 s unless a configuration interrupt ends its wait
(reference D.6), so one is sent as soon as the host seems to have room (MEM-D-11 allows it).
"""

from __future__ import annotations

from collections.abc import Callable

FIRST_LOOK = 1.0
LAST_LOOK = 30.0
"""Seconds until the first look; doubled by every BUSY without success between, up to the last."""


class Shortage:
    """`room_for(bytes)` asks the host, `retry()` sends the interrupt. Use with the lock held."""

    def __init__(self, room_for: Callable[[int], bool], retry: Callable[[], None]) -> None:
        self.later: Callable[[float, Callable[[], None]], None] = lambda _seconds, _look: None
        """Calls a function in some seconds (Errands.later)."""
        self.short_of = 0
        """Bytes that could not be had, while the driver waits for them; else 0."""
        self.why = ""
        """What the host said."""
        self._room_for = room_for
        self._retry = retry
        self._delay = FIRST_LOOK
        self._looking = False

    def refused(self, length: int, why: str) -> None:
        """A request for `length` bytes was answered BUSY because of `why`."""
        self.short_of = length
        self.why = why
        if not self._looking:
            self._looking = True
            self.later(self._delay, self._look)

    def over(self) -> None:
        """A request was served, or the target is a new one: the next shortage is another one."""
        self.short_of = 0
        self.why = ""
        self._delay = FIRST_LOOK

    def load(self, length: int, why: str) -> None:
        """Go on where another process was: it waited for `length` bytes, unless that is 0."""
        self.over()
        if length:
            self.refused(length, why)

    def _look(self) -> None:
        self._looking = False
        if not self.short_of:
            return
        if self._room_for(self.short_of):
            self._delay = min(2 * self._delay, LAST_LOOK)
            self._retry()
        else:
            self._looking = True
            self.later(self._delay, self._look)
