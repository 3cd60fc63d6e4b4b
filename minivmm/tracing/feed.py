"""Feed: the events of a machine for one follower, waiting in a bounded queue, as lines of JSON.

Whoever tells an event pays for a place in the queue and no more: lines are made by the follower.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from minivmm.trace import Event
from minivmm.tracing.scene import Scene
from minivmm.tracing.wish import Filter, Wish

CAPACITY = 8192
"""Events that may wait for a follower; some 10 MB."""

LONGEST_TEXT = 4096
"""Characters of a text in an event; more is cut off."""

_GAP = ("trace", "dropped")
"""Source and name of the event that stands for those left out."""

_DIGITS = 7
"""Of durations, behind the point."""


@dataclass(frozen=True, slots=True)
class _Entry:
    number: int
    event: Event
    guest: float | None
    sizes: dict[str, int] | None


class Feed:
    """Begins at once, and ends by `close`; both want the machine's lock held.

    `wake` is called, from any thread, when the queue was empty and is not any more.
    """

    def __init__(self, scene: Scene, wish: Wish, wake: Callable[[], None]) -> None:
        self.header = json.dumps(scene.header(wish))
        """The first line, without its end."""
        self.lost = 0
        """Events that were left out, for want of room here or where the follower writes."""
        self._scene = scene
        self._wake = wake
        self._began = scene.trace.began
        self._filter = Filter(wish.patterns)
        self._lock = threading.Lock()  # events come from any thread
        self._entries: deque[_Entry] = deque()
        self._taken: list[_Entry] = []
        self._number = 0
        self._gap = 0
        self._stop = scene.trace.follow(self._on_event, *wish.details)
        self._open = True

    def take(self, limit: int) -> list[str]:
        """The next lines, at most about `limit`, without their ends; none if nothing waits."""
        with self._lock:
            entries = self._entries
            taken = [entries.popleft() for _ in range(min(limit, len(entries)))]
            if self._gap and not entries:
                taken.append(self._close_gap())
            self._taken = taken
        return [self._line(entry) for entry in taken]

    def lose(self) -> None:
        """The lines taken last could not be passed on: say so in the next ones."""
        with self._lock:
            for entry in self._taken:
                missing = entry.event.fields["count"] if _is_gap(entry.event) else 1
                assert isinstance(missing, int)
                self._gap += missing
                self.lost += not _is_gap(entry.event)
            self._taken = []

    def close(self) -> None:
        """No more events; what waits can still be taken. Harmless when repeated."""
        if self._open:
            self._open = False
            self._stop()

    def _on_event(self, event: Event) -> None:
        with self._lock:
            self._number += 1
            if not self._filter.wants(event.source, event.name):
                return
            waiting = len(self._entries)
            if waiting >= CAPACITY:
                self.lost += 1
                self._gap += 1
                return
            if self._gap:
                self._entries.append(self._close_gap(event.time))
                self._number += 1
            guest, sizes = self._scene.guest_time(event.time), self._scene.sizes(event.source)
            self._entries.append(_Entry(self._number, event, guest, sizes))
        if not waiting:
            self._wake()

    def _close_gap(self, moment: float | None = None) -> _Entry:
        """The event that stands for those left out."""
        count, self._gap = self._gap, 0
        if moment is None:
            moment = time.monotonic()
            self._number += 1
        return _Entry(self._number, Event(moment, *_GAP, {"count": count}), None, None)

    def _line(self, entry: _Entry) -> str:
        event = entry.event
        data: dict[str, object] = {"n": entry.number, "t": round(event.time - self._began, 6)}
        if entry.guest is not None:
            data["guest"] = round(entry.guest, 6)
        data |= {"source": event.source, "name": event.name}
        for key, value in event.fields.items():
            data[key.replace("_", "-")] = _plain(value)
        if entry.sizes is not None:
            data["state"] = entry.sizes
        return json.dumps(data, default=str)


def _is_gap(event: Event) -> bool:
    return (event.source, event.name) == _GAP


def _plain(value: object) -> object:
    """`value` in a length that is fit to print."""
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        return value[:LONGEST_TEXT]
    return value
