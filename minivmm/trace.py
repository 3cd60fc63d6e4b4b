"""The event stream: one `emit`, a bounded ring of recent events, and sinks that follow it.

What the guest did wrong, resets, answers and size changes end up here; nothing else logs. What
happens too often for that is a Detail: it is told only while a sink wants it, and whoever tells it
is switched on and off, so that it costs nothing otherwise (docs/trace.md).
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

RING_SIZE = 4096
"""Events kept for `inspect` and bug reports; older ones are dropped."""

HEX = frozenset({"gpa", "port"})
"""Fields that people read in hexadecimal."""


class Detail(StrEnum):
    """Events that exist only while somebody follows them."""

    REQUESTS = "requests"
    """The life of every request, from its doorbell to its interrupt."""
    EXITS = "exits"
    """Every exit that a vCPU is served."""
    MEMORY = "memory"
    """What the guest does with plugged memory: added, online, touched."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened: `time` in seconds (CLOCK_MONOTONIC), who, what, and plain data."""

    time: float
    source: str
    name: str
    fields: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        details = " ".join(f"{key}={shown(key, value)}" for key, value in self.fields.items())
        return f"{self.source} {self.name} {details}".rstrip()


Sink = Callable[[Event], None]
Switch = Callable[[bool], None]
"""Called with the machine's lock held: whether to tell a detail from now on."""


class Trace:
    """A bounded ring of events; safe to emit to from any thread (deque.append is atomic).

    `follow`, what it returns, and `on_detail` want the machine's lock held.
    """

    def __init__(self) -> None:
        self.began = time.monotonic()
        """When the machine began, in seconds of CLOCK_MONOTONIC."""
        self.wall = time.time()
        """The same moment as time of day, in seconds since 1970."""
        self._ring: deque[Event] = deque(maxlen=RING_SIZE)
        # Tuples, replaced as a whole: other threads may be looking at the old ones.
        self._sinks: tuple[Sink, ...] = ()
        self._detailed: dict[Detail, tuple[Sink, ...]] = dict.fromkeys(Detail, ())
        self._ids = itertools.count(1)
        self._switches: dict[Detail, list[Switch]] = {detail: [] for detail in Detail}

    def emit(self, source: str, name: str, **fields: object) -> None:
        """Record that `name` happened at `source` ("vmem0", "vcpu1", "pci", ...)."""
        event = Event(time.monotonic(), source, name, fields)
        self._ring.append(event)
        for sink in self._sinks:
            sink(event)

    def tell(self, detail: Detail, source: str, name: str, fields: Mapping[str, object]) -> None:
        """Tell those who want `detail` that `name` happened; nobody keeps it."""
        event = Event(time.monotonic(), source, name, fields)
        for sink in self._detailed[detail]:
            sink(event)

    def follow(self, sink: Sink, *details: Detail) -> Callable[[], None]:
        """Call `sink` for every later event, and for those of `details`, in whatever thread.

        Returns the function that stops it. A sink must be quick and must not raise.
        """
        self._sinks += (sink,)
        for detail in details:
            first = not self._detailed[detail]
            self._detailed[detail] += (sink,)
            if first:
                self._switch(detail, on=True)

        def stop() -> None:
            self._sinks = _without(self._sinks, sink)
            for detail in details:
                self._detailed[detail] = _without(self._detailed[detail], sink)
                if not self._detailed[detail]:
                    self._switch(detail, on=False)

        return stop

    def on_detail(self, detail: Detail, switch: Switch) -> None:
        """Have `switch` called whenever the first begins, or the last ends, to follow `detail`."""
        self._switches[detail].append(switch)
        if self._detailed[detail]:
            switch(True)

    def next_id(self) -> int:
        """An identifier for a request, which no other of this machine has."""
        return next(self._ids)

    def recent(self) -> list[Event]:
        """The events still in the ring, oldest first."""
        return list(self._ring)

    def _switch(self, detail: Detail, *, on: bool) -> None:
        for switch in self._switches[detail]:
            switch(on)


def shown(key: str, value: object) -> str:
    """A field's value for people: addresses in hexadecimal."""
    return f"{value:#x}" if key in HEX and isinstance(value, int) else str(value)


def _without(sinks: tuple[Sink, ...], sink: Sink) -> tuple[Sink, ...]:
    """`sinks` without one `sink`; a sink may follow twice."""
    at = sinks.index(sink)
    return sinks[:at] + sinks[at + 1 :]
