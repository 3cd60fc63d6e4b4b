"""A trace as the conversation of a virtio-mem device: what it was told, and what it said to that.

The format is the trace's own (docs/trace.md); nothing is recorded that only replay would need.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from minivmm.errors import UsageError
from minivmm.tracing.reader import Recording

Event = Mapping[str, Any]


@dataclass
class Step:
    """One thing that was asked of the device, and what it told."""

    kind: str
    """request, resize, kick, config-read, features, reset, system-reset."""
    events: list[Event]
    """Those of the trace, from the first on."""
    told: dict[str, object] = field(default_factory=dict)
    """What a replay compares."""
    refused: bool = False
    """The host refused its part."""

    @property
    def first(self) -> Event:
        """The event that it began with."""
        return self.events[0]


@dataclass
class Conversation:
    """One device's: as it was at first, and all steps in their order."""

    header: Mapping[str, Any]
    """Of the trace."""
    device: Mapping[str, Any]
    """Its part of the header."""
    steps: list[Step]
    unanswered: int = 0
    """Requests that were under way when the recording ended."""

    @property
    def identifier(self) -> str:
        """The device's id."""
        return str(self.device["id"])

    def counts(self) -> dict[str, int]:
        """How many steps there are of each kind."""
        counted: dict[str, int] = {}
        for step in self.steps:
            counted[step.kind] = counted.get(step.kind, 0) + 1
        return counted


def record_filter(identifiers: Iterable[str]) -> tuple[str, ...]:
    """The trace's filter by which a recording of these devices is small, and complete."""
    devices = [*identifiers]
    noise = [f"!{one}:{name}" for one in devices for name in ("kick", "chain", "interrupt")]
    return (*devices, "machine", *noise)


def conversations(recording: Recording) -> list[Conversation]:
    """Of every memory device in the trace. Raises UsageError if it cannot be replayed."""
    memory = [one for one in recording.header["devices"] if one["type"] == "virtio-mem"]
    listeners = {one["id"]: _Listener(one) for one in memory}
    for event in recording.events:
        if event["name"] == "dropped":
            raise UsageError(
                f"{event['count']} events are missing at {event['t']:.6f} s of the trace:"
                " record with boot --record, which is less"
            )
        if event["source"] == "machine" and event["name"] == "reset":
            for one in listeners.values():
                one.hear(event)
        elif event["source"] in listeners:
            listeners[event["source"]].hear(event)
    return [
        Conversation(recording.header, one.device, one.steps(), len(one.waiting))
        for one in listeners.values()
    ]


class _Listener:
    """Makes steps of one device's events."""

    def __init__(self, device: Mapping[str, Any]) -> None:
        if not device["plugged-complete"]:
            raise UsageError(f"{device['id']}: the trace does not tell all that was plugged")
        self.device = device
        self.waiting: dict[int, Step] = {}
        """Requests without an answer, by their identifier."""
        self._steps: list[Step] = []
        self._by_id: dict[int, Step] = {}
        self._plugged = device["state"]["plugged-size"]
        self._live: bool | None = None
        """Does the driver get interrupts? None: the trace did not tell yet."""

    def hear(self, event: Event) -> None:
        """The next event of the device, or the machine's reset."""
        name = event["name"]
        if event["source"] == "machine":
            self._begin("system-reset", event)
            self._plugged, self._live = 0, False
        elif name == "request":
            self._live = True
            self.waiting[event["id"]] = self._by_id[event["id"]] = self._begin("request", event)
        elif name == "answer":
            self._answered(event)
        elif name == "used":
            self._note(event, written=event["written"])
        elif "error" in event:
            self._note(event).refused = True
        elif name == "config":
            self._interrupted(event)
        elif name == "resize":
            step = self._begin("resize", event)
            step.told = {key: event[key] for key in ("requested-size", "usable-size")}
            if self._live is not None:
                step.told["interrupts"] = 0
        elif name == "config-read":
            self._begin("config-read", event).told = {"value": event["value"]}
        elif name == "features":
            self._begin("features", event).told = {"accepted": not event["refused"]}
        elif name == "reset":
            self._begin("reset", event)
            self._live = False
        elif name == "status":
            self._live = "DRIVER_OK" in event["status"] and "FAILED" not in event["status"]
        elif name == "broken":
            self._live = False

    def steps(self) -> list[Step]:
        """All steps; a request that others overtook was never answered, and that is told."""
        last = max((at for at, step in enumerate(self._steps) if "answer" in step.told), default=-1)
        for at, step in enumerate(self._steps):
            if step.kind == "request" and "answer" not in step.told and at < last:
                step.told["answer"] = None
        overtaken = [step for step in self._steps if step.told.get("answer", "") is None]
        self.waiting = {
            key: step for key, step in self.waiting.items() if not any(step is s for s in overtaken)
        }
        cut = {id(step) for step in self.waiting.values()}
        return [step for step in self._steps if id(step) not in cut]

    def _begin(self, kind: str, event: Event) -> Step:
        self._steps.append(Step(kind, [event]))
        return self._steps[-1]

    def _note(self, event: Event, **told: object) -> Step:
        """Part of the request that `event` belongs to."""
        step = self._by_id.get(event.get("id", 0)) or Step("request", [])
        step.events.append(event)
        step.told |= told
        return step

    def _answered(self, event: Event) -> None:
        step = self.waiting.pop(event.get("id", 0), None)
        if step is None:  # a trace without details, or one that begins in the middle
            step = self._begin("request", event)
            if "id" in event:
                self._by_id[event["id"]] = step
        else:
            step.events.append(event)
        change = event["plugged"] - self._plugged
        self._plugged = event["plugged"]
        step.told |= {"answer": event["answer"], "change": change}
        if "found" in event:
            step.told["found"] = event["found"]
        if event["type"] == "UNPLUG_ALL" and "state" in event:
            step.told["usable-size"] = event["state"]["usable-size"]

    def _interrupted(self, event: Event) -> None:
        """By a resize, or, if nothing was told before it, by somebody who kicked the driver."""
        last = self._steps[-1] if self._steps else None
        if last is not None and last.kind == "resize" and last.told.get("interrupts") == 0:
            last.told["interrupts"] = 1
            last.events.append(event)
        elif last is None or last.kind != "resize" or "interrupts" in last.told:
            self._begin("kick", event)
