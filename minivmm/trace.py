"""The event stream: one `emit`, a bounded ring of recent events, and sinks that follow it.

What the guest did wrong, resets, requests and size changes end up here; nothing else logs.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

RING_SIZE = 4096
"""Events kept for `inspect` and bug reports; older ones are dropped."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened: `time` in seconds (CLOCK_MONOTONIC), who, what, and plain data."""

    time: float
    source: str
    name: str
    fields: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        details = " ".join(f"{key}={value}" for key, value in self.fields.items())
        return f"{self.source} {self.name} {details}".rstrip()


class Trace:
    """A bounded ring of events; safe to emit to from any thread (deque.append is atomic)."""

    def __init__(self) -> None:
        self._ring: deque[Event] = deque(maxlen=RING_SIZE)
        self._sinks: list[Callable[[Event], None]] = []

    def emit(self, source: str, name: str, **fields: object) -> None:
        """Record that `name` happened at `source` ("vmem0", "vcpu1", "pci", ...)."""
        event = Event(time.monotonic(), source, name, fields)
        self._ring.append(event)
        for sink in self._sinks:
            sink(event)

    def follow(self, sink: Callable[[Event], None]) -> Callable[[], None]:
        """Call `sink` for every later event; returns the function that stops it."""
        self._sinks.append(sink)
        return lambda: self._sinks.remove(sink)

    def recent(self) -> list[Event]:
        """The events still in the ring, oldest first."""
        return list(self._ring)
