"""The resizes in a trace: when each step came, and who took how long.

requested -> config interrupt -> first request ... last answer -> done
                                 plugged -> added -> onlined -> touched
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from minivmm.report.story import MemoryDevice, Story

HOST_STEPS = ("allow", "populate", "show", "hide", "discard")
"""Events that tell what the host's memory management was asked to do, with its seconds."""

STATES = ("added", "online", "touched")
"""What becomes of plugged memory in the guest, in this order, as events `memory` tell."""

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """One exchange. Times in seconds since the machine began; `seconds` from taken to returned."""

    id: int
    type: str
    answer: str
    gpa: int | None
    blocks: int
    size: int
    t: float
    seconds: float | None
    host: float
    """Seconds of it that the host's memory management took."""
    why: str


@dataclass(frozen=True)
class Resize:
    """From a new target to its end: reached, replaced by another target, or the trace's end."""

    device: str
    began: float
    before: int
    """Bytes plugged when the target was set."""
    target: int
    after: int
    """Bytes plugged at the end."""
    ended: float
    outcome: str
    """"done", "replaced", "unfinished"."""
    told: float | None
    """When the guest was sent the configuration interrupt."""
    requests: tuple[Request, ...]
    memory: Mapping[str, tuple[float, int]]
    """State of STATES -> when the last piece of memory reached it, and bytes that did."""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began

    @property
    def wake(self) -> float | None:
        """Seconds from the interrupt to the driver's first request, None where there is none."""
        if self.told is None or not self.requests:
            return None
        return max(0.0, self.requests[0].t - self.told)

    @property
    def host(self) -> float:
        """Seconds in the host's memory management, for requests."""
        return sum(request.host for request in self.requests)

    @property
    def device_share(self) -> float:
        """Seconds in the device model itself."""
        taken = sum(request.seconds or 0.0 for request in self.requests)
        return max(0.0, taken - self.host)

    @property
    def driver(self) -> float:
        """The rest of the time: the guest's, from its waking up to its last request."""
        return max(0.0, self.seconds - self.host - self.device_share)

    @property
    def moved(self) -> int:
        """Bytes by which the plugged size changed."""
        return abs(self.after - self.before)


def find_requests(story: Story, device: str) -> list[Request]:
    """All exchanges of one device, oldest first; without the detail `requests`, no seconds."""
    taken: dict[int, float] = {}
    seconds: dict[int, float] = {}
    host: dict[int, float] = {}
    answers: list[Event] = []
    for event in story.of(device):
        number = event.get("id")
        if number is None:
            continue
        if event["name"] == "answer":
            answers.append(event)
        elif event["name"] == "chain":
            taken[number] = event["t"]
        elif event["name"] == "used":
            seconds[number] = event["seconds"]
        elif event["name"] in HOST_STEPS:
            host[number] = host.get(number, 0.0) + event["seconds"]
    return [
        Request(
            id=event["id"],
            type=str(event["type"]),
            answer=event["answer"],
            gpa=event.get("gpa"),
            blocks=event.get("blocks", 0),
            size=event.get("size", 0),
            t=taken.get(event["id"], float(event["t"])),
            seconds=seconds.get(event["id"]),
            host=host.get(event["id"], 0.0),
            why=event.get("why", ""),
        )
        for event in answers
    ]


def find_resizes(story: Story, device: MemoryDevice, requests: Sequence[Request]) -> list[Resize]:
    """The resizes of `device`, oldest first; `requests` are those that find_requests found."""
    events = story.of(device.id)
    starts = [at for at, event in enumerate(events) if event["name"] == "resize"]
    found = []
    for start, following in pairwise([*starts, len(events)]):
        last = following == len(events)
        stop = story.end if last else events[following]["t"]
        before = _plugged_before(events[:start], device.plugged)
        found.append(_one(device, events[start:following], before, stop, requests, last=last))
    return found


def _one(
    device: MemoryDevice,
    events: Sequence[Event],
    before: int,
    stop: float,
    requests: Sequence[Request],
    *,
    last: bool,
) -> Resize:
    """`events` begin with the new target and go up to `stop`."""
    began, target = events[0]["t"], events[0]["requested-size"]
    sizes = [(event["t"], event["plugged"]) for event in events if event["name"] == "answer"]
    ended = began if before == target else next((t for t, size in sizes if size == target), None)
    after = target if ended is not None else (sizes[-1][1] if sizes else before)
    until = stop if ended is None else ended
    return Resize(
        device=device.id,
        began=began,
        before=before,
        target=target,
        after=after,
        ended=until,
        outcome="done" if ended is not None else "unfinished" if last else "replaced",
        told=next((event["t"] for event in events if event["name"] == "config"), None),
        requests=tuple(one for one in requests if began <= one.t <= until),
        memory=_memory_states(events),
    )


def _plugged_before(events: Sequence[Event], first: int) -> int:
    for event in reversed(events):
        size = event.get("state", {}).get("plugged-size")
        if size is not None:
            return int(size)
    return first


def _memory_states(events: Sequence[Event]) -> dict[str, tuple[float, int]]:
    found: dict[str, tuple[float, int]] = {}
    for event in events:
        if event["name"] == "memory" and event["what"] in STATES:
            _, size = found.get(event["what"], (0.0, 0))
            found[event["what"]] = (event["t"], size + event["size"])
    return found
