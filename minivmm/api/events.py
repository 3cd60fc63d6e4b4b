"""Following what happens in a machine: its trace, filtered, collected, waited for."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from minivmm.api.engine import Engine
from minivmm.closing import Closing
from minivmm.errors import GuestFailure, WaitTimeout
from minivmm.trace import Event
from minivmm.tracing.wish import Filter, parse_details

KEPT = 100_000
"""Events that a follower keeps; older ones are dropped."""

_SLICE = 0.2
"""Seconds after which one who waits for events looks whether the machine has ended."""

Match = str | Callable[[Event], bool]
"""A pattern as `minivmm trace --filter` takes it (vmem0:answer), or a function."""


class Following(Closing):
    """The events of a machine from now on, until `close` or the end of its `with`.

    Events come from any thread, and everything here may be used from any.
    """

    def __init__(self, engine: Engine, patterns: Sequence[str], details: str) -> None:
        self._engine = engine
        self._filter = Filter(patterns)
        self._changed = threading.Condition()
        self._events: deque[Event] = deque(maxlen=KEPT)
        self._came = 0
        self._looked_at = 0
        trace = engine.machine.trace
        wanted = parse_details(details)
        self._stop: Callable[[], None] | None = engine.call(
            lambda: trace.follow(self._on_event, *wanted)
        )

    @property
    def events(self) -> list[Event]:
        """What has come, oldest first."""
        with self._changed:
            return list(self._events)

    def wait_for(self, match: Match, timeout: float = 30.0) -> Event:
        """The next event that fits, after the one that was waited for before.

        Raises WaitTimeout after `timeout` seconds, GuestFailure once the machine has ended.
        """
        fits = _predicate(match)
        deadline = time.monotonic() + timeout
        while (event := self.next(deadline - time.monotonic())) is not None:
            if fits(event):
                return event
        outcome = self._engine.outcome
        if outcome is not None:
            raise GuestFailure(f"{self._engine.spec.name}: {outcome.reason}: no event {match!r}")
        raise WaitTimeout(f"no event {match!r} within {timeout:g} s: {len(self.events)} others")

    def next(self, timeout: float) -> Event | None:
        """The next event that was not waited for; None after `timeout` seconds, or at the end."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                self._looked_at = max(self._looked_at, self._came - len(self._events))
                if self._looked_at < self._came:
                    self._looked_at += 1
                    return self._events[self._looked_at - 1 - self._came]
                left = deadline - time.monotonic()
                if left <= 0 or self.ended:
                    return None
                self._changed.wait(min(left, _SLICE))

    @property
    def ended(self) -> bool:
        """Whether no more will come."""
        return self._stop is None or self._engine.outcome is not None or self._engine.closed

    def __iter__(self) -> Iterator[Event]:
        """Each event as it comes, until the machine has ended or somebody calls `close`."""
        while True:
            event = self.next(_SLICE)
            if event is not None:
                yield event
            elif self.ended:
                return

    def close(self) -> None:
        """No more events; what came stays."""
        stop, self._stop = self._stop, None
        if stop is not None:
            with self._engine.loop.lock:
                stop()
        with self._changed:
            self._changed.notify_all()

    def _on_event(self, event: Event) -> None:
        with self._changed:
            if self._filter.wants(event.source, event.name):
                self._events.append(event)
                self._came += 1
                self._changed.notify_all()


class TraceView:
    """A machine's trace."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def follow(self, *patterns: str, details: str = "requests") -> Following:
        """Events from now on: those that fit one of `patterns` (vmem0, vmem0:answer, !:config).

        `details`: what is told beside what always is: requests,exits,memory. Raises UsageError.
        """
        return Following(self._engine, patterns, details)

    def recent(self, *patterns: str) -> list[Event]:
        """The latest of the events that are always kept, some thousand, oldest first."""
        wanted = Filter(patterns)
        events = self._engine.machine.trace.recent()
        return [event for event in events if wanted.wants(event.source, event.name)]


def _predicate(match: Match) -> Callable[[Event], bool]:
    if not isinstance(match, str):
        return match
    wanted = Filter((match,))
    return lambda event: wanted.wants(event.source, event.name)
