"""Feed: follows one VM over its control socket, and hands what is new to any number of viewers.

One thread asks, whatever the number of viewers; each viewer waits for what it has not seen. A slow
viewer misses states in between, never the latest one. Everything kept is bounded.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from minivmm.control.client import Client
from minivmm.errors import MinivmmError, NoSuchMachine, Refused
from minivmm.runtime import MachineDir
from minivmm.ui.eventlog import EventLog
from minivmm.ui.rates import Rates

INTERVAL = 0.5
"""Seconds between two looks, unless an event calls for one at once."""

QUIET = 0.05
"""Least seconds between two looks, however many events come."""

RESIDENCY = 2.0
"""Seconds between two looks for host memory, which cost more."""

HISTORY = 1200
"""Samples kept of the sizes: ten minutes of them."""


@dataclass(frozen=True)
class Sample:
    """Sizes of all memory devices at one time (seconds, CLOCK_MONOTONIC of this process)."""

    time: float
    sizes: dict[str, tuple[int, int, int]]
    """By device id: requested, plugged, resident; bytes."""

    def to_json(self, now: float) -> dict[str, object]:
        """With the time as seconds before `now`."""
        return {"ago": round(now - self.time, 3), "sizes": self.sizes}


@dataclass(frozen=True)
class State:
    """What viewers see: the VM at one moment, or why there will be no more."""

    number: int
    """Ascending, by one for each look; 0 before the first."""
    view: dict[str, Any]
    """The answer to x-minivmm-view; its devices have "rates" and "residency" besides."""
    ended: str | None = None
    """Why the VM cannot be followed any more."""


class Feed:
    """Follows the VM of `entry`, with block maps of at most `cells` cells, until `close`.

    Raises NoSuchMachine if it does not run. Public methods are for any thread.
    """

    def __init__(self, entry: MachineDir, *, cells: int, interval: float = INTERVAL) -> None:
        self.name = entry.name
        self.log = EventLog(entry.trace_socket)
        self._client = Client(entry.qmp_socket)
        self._cells = cells
        self._interval = interval
        self._rates = Rates()
        self._residency: dict[str, dict[str, Any]] = {}
        self._residency_at = 0.0
        self._history: deque[Sample] = deque(maxlen=HISTORY)
        self._state = State(0, {})
        self._changed = threading.Condition()
        self._wanted = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._follow, name="feed", daemon=True)
        self._thread.start()

    @property
    def state(self) -> State:
        """The latest."""
        return self._state

    def wait(self, after: int, seconds: float) -> State | None:
        """The latest state if its number is above `after`, waiting for it at most `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: self._fresh(after), seconds)
            return self._state if self._fresh(after) else None

    def history(self) -> list[Sample]:
        """The sizes of the last minutes, oldest first."""
        with self._changed:
            return list(self._history)

    def close(self) -> None:
        """Stop following; viewers that wait see an end."""
        self._closing = True
        self._thread.join()
        self.log.close()
        self._client.close()
        self._publish(State(self._state.number + 1, self._state.view, "the view was closed"))

    def _fresh(self, after: int) -> bool:
        return self._state.number > after

    def _publish(self, state: State) -> None:
        with self._changed:
            if self._state.ended is None:
                self._state = state
                self._changed.notify_all()

    def _follow(self) -> None:
        try:
            while not self._closing:
                began = time.monotonic()
                self._look(began)
                self._rest(began)
        except NoSuchMachine:
            self._end("the VM has ended")
        except MinivmmError as error:
            self._end(str(error))

    def _end(self, why: str) -> None:
        self.log.close()
        self._publish(State(self._state.number + 1, self._state.view, why))

    def _look(self, now: float) -> None:
        view = self._client.execute(
            "x-minivmm-view", cells=self._cells, events_after=self.log.after
        )
        if now - self._residency_at >= RESIDENCY:
            self._residency_at = now
            for device in view["memory-devices"]:
                self._look_for_host_memory(device["id"])
        for device in view["memory-devices"]:
            device["residency"] = self._residency.get(device["id"])
            device["rates"] = self._rates.of(device["id"], view["time"], device)
        self.log.take(view.pop("events"), view["time"])
        sizes = {d["id"]: _sizes(d) for d in view["memory-devices"]}
        with self._changed:
            self._history.append(Sample(now, sizes))
        self._publish(State(self._state.number + 1, view))

    def _look_for_host_memory(self, identifier: str) -> None:
        """One step over the region; the cells seen earlier stay as they were."""
        known = self._residency.get(identifier)
        first = known["next"] if known else 0
        try:
            answer = self._client.execute(
                "x-minivmm-residency", id=identifier, cells=self._cells, first=first
            )
        except Refused:
            return  # of a region that the kernel does not tell about; sizes are still shown
        held = list(known["held"]) if known else [None] * answer["cells"]
        held[first : first + len(answer["held"])] = answer["held"]
        self._residency[identifier] = {**answer, "held": held}

    def _rest(self, began: float) -> None:
        """Until the next look is due, or something happened that viewers should see at once."""
        while not self._closing:
            left = began + self._interval - time.monotonic()
            if left <= 0:
                return
            if self._client.event(min(left, 0.2)) is not None:
                time.sleep(max(0.0, began + QUIET - time.monotonic()))
                return


def _sizes(device: dict[str, Any]) -> tuple[int, int, int]:
    residency = device["residency"]
    resident = residency["resident"] if residency else 0
    return device["requested-size"], device["size"], resident
