"""Traces for ui.perfetto.dev: tracks by device, queue and vCPU, flows from kick to interrupt.

Field numbers are those of perfetto's protos/perfetto/trace/trace_packet.proto and, for events, of
protos/perfetto/trace/track_event/*.proto. The JSON that Perfetto reads as well is an old format,
without flows that can be relied on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from minivmm.tracing.perfetto_tracks import SEQUENCE, Tracks, packet
from minivmm.tracing.protobuf import data, double, fixed64, number, text
from minivmm.tracing.text import asked

Event = Mapping[str, Any]

_BEGIN, _END, _INSTANT, _COUNTER = 1, 2, 3, 4
"""TrackEvent.Type."""

_HOST_WORK = frozenset({"allow", "populate", "show", "hide", "discard"})
_LIFE = frozenset({"kick", "chain", "request", "answer", "used", "interrupt"})
_BOOTTIME, _REALTIME = 6, 1
"""BuiltinClock. Timestamps are the first's, as far as anybody can tell it from CLOCK_MONOTONIC."""


@dataclass(slots=True)
class _Open:
    """A chain that the device has: its event, what was learned of it, and its lane."""

    chain: Event
    lane: int
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Queue:
    """What is under way in one queue."""

    lanes: list[int | None] = field(default_factory=list)
    """Identifiers of the chains that are open, by lane: slices of a lane must not overlap."""
    kick: Event | None = None
    brought: list[int] = field(default_factory=list)
    """Chains that the last kick brought."""

    def enter(self, identifier: int) -> int:
        """The first free lane, from now on that of chain `identifier`."""
        if None not in self.lanes:
            self.lanes.append(None)
        lane = self.lanes.index(None)
        self.lanes[lane] = identifier
        return lane


def convert(header: Event, events: Iterable[Event]) -> Iterator[bytes]:
    """Pieces of the file, in order; what is kept meanwhile is bounded by what is under way."""
    converter = _Converter(header)
    yield from converter.prologue(header)
    for event in events:
        yield from converter.pieces(event)
    yield from converter.epilogue()


class _Converter:
    def __init__(self, header: Event) -> None:
        self._base = round(header["clock"]["monotonic"] * 1e9)
        self._tracks = Tracks(str(header["name"]))
        self._queues: dict[tuple[str, int], _Queue] = {}
        self._open: dict[int, _Open] = {}
        self._sizes: dict[tuple[str, str], int] = {}

    def prologue(self, header: Event) -> Iterator[bytes]:
        """Clocks, the machine, and the sizes of its devices when the trace began."""
        clocks = ((_BOOTTIME, self._base), (_REALTIME, round(header["clock"]["wall"] * 1e9)))
        snapshot = b"".join(data(1, number(1, clock) + number(2, time)) for clock, time in clocks)
        yield packet(data(6, snapshot))
        yield self._tracks.machine()
        for device in header["devices"]:
            yield from self._counters(device["id"], header["t"], device.get("state", {}))

    def pieces(self, event: Event) -> Iterator[bytes]:
        """What `event` adds to the file."""
        name, source = str(event["name"]), str(event["source"])
        if name in _LIFE and "queue" in event:
            yield from self._life(name, source, event)
        elif name in ("request", "answer") and event.get("id") in self._open:
            self._open[event["id"]].facts.update(event)
        elif name == "answer":  # the trace has no details, or begins in the middle of a request
            said = f"{asked(event)}: {event['answer']}"
            yield from self._instant(self._tracks.plain(source), said, event)
        elif name in _HOST_WORK:
            yield from self._span(self._tracks.host(source), name, event)
        elif name == "exit" and "kind" in event:
            yield from self._span(self._tracks.plain(source), _exit_name(event), event)
        else:
            yield from self._instant(self._tracks.plain(source), name, event)
        yield from self._counters(source, event["t"], event.get("state", {}))

    def epilogue(self) -> Iterator[bytes]:
        """What is still under way when the trace ends."""
        for (source, index), queue in self._queues.items():
            yield from self._end_kick(source, index, queue)
        for identifier, opened in self._open.items():
            yield from self._begin_request(identifier, opened)

    # -- requests ----------------------------------------------------------------------------------

    def _life(self, name: str, source: str, event: Event) -> Iterator[bytes]:
        key = (source, int(event["queue"]))
        queue = self._queues.setdefault(key, _Queue())
        if name == "kick":
            yield from self._end_kick(*key, queue)
            queue.kick, queue.brought = event, []
        elif name == "chain":
            queue.brought.append(event["id"])
            self._open[event["id"]] = _Open(event, queue.enter(event["id"]))
        elif name == "used":
            yield from self._end_request(event, queue)
        else:
            yield from self._instant(
                self._tracks.interrupts(*key), "interrupt", event, ends=event.get("ids", [])
            )

    def _end_kick(self, source: str, index: int, queue: _Queue) -> Iterator[bytes]:
        """A kick is written once it is known which chains it brought: flows begin there."""
        kick, queue.kick = queue.kick, None
        if kick is not None:
            track = self._tracks.kicks(source, index)
            yield from self._instant(track, "kick", kick, flows=queue.brought)

    def _end_request(self, event: Event, queue: _Queue) -> Iterator[bytes]:
        opened = self._open.pop(event["id"], None)
        if opened is None:
            return  # it was taken before the trace began
        queue.lanes[opened.lane] = None
        opened.facts.setdefault("written", event["written"])
        yield from self._begin_request(event["id"], opened)
        track, _ = self._lane(opened)
        yield self._event(_END, event["t"], track)

    def _begin_request(self, identifier: int, opened: _Open) -> Iterator[bytes]:
        facts, chain = opened.facts, opened.chain
        name = f"{chain['readable']} bytes to read, {chain['writable']} to write"
        if "type" in facts:
            name = asked(facts) + (f": {facts['answer']}" if "answer" in facts else "")
        track, described = self._lane(opened)
        yield described
        about = _annotations({**chain, **facts})
        flows = fixed64(47, identifier)
        yield self._event(_BEGIN, chain["t"], track, text(23, name) + flows + about)

    def _lane(self, opened: _Open) -> tuple[int, bytes]:
        chain = opened.chain
        return self._tracks.queue(str(chain["source"]), int(chain["queue"]), opened.lane)

    # -- everything else ---------------------------------------------------------------------------

    def _span(self, track: tuple[int, bytes], name: str, event: Event) -> Iterator[bytes]:
        """Something that is over, and took `seconds`."""
        uuid, described = track
        yield described
        began = max(0.0, event["t"] - event["seconds"])
        yield self._event(_BEGIN, began, uuid, text(23, name) + _annotations(event))
        yield self._event(_END, event["t"], uuid)

    def _instant(
        self,
        track: tuple[int, bytes],
        name: str,
        event: Event,
        *,
        flows: Iterable[int] = (),
        ends: Iterable[int] = (),
    ) -> Iterator[bytes]:
        uuid, described = track
        yield described
        links = b"".join(fixed64(47, one) for one in flows)
        links += b"".join(fixed64(48, one) for one in ends)
        yield self._event(_INSTANT, event["t"], uuid, text(23, name) + links + _annotations(event))

    def _counters(self, source: str, moment: float, sizes: Mapping[str, int]) -> Iterator[bytes]:
        for name, size in sizes.items():
            if self._sizes.get((source, name)) != size:
                self._sizes[source, name] = size
                uuid, described = self._tracks.counter(source, name)
                yield described
                yield self._event(_COUNTER, moment, uuid, number(30, size))

    def _event(self, kind: int, moment: float, track: int, rest: bytes = b"") -> bytes:
        """A TracePacket with one TrackEvent; `moment` in seconds since the machine began."""
        time = self._base + round(moment * 1e9)
        event = number(9, kind) + number(11, track) + rest
        return packet(number(8, time) + number(10, SEQUENCE) + data(11, event))


def _exit_name(event: Event) -> str:
    place = event.get("port", event.get("gpa"))
    return str(event["kind"]) if place is None else f"{event['kind']} {place:#x}"


_NOT_TOLD = frozenset({"t", "source", "name", "state"})


def _annotations(event: Event) -> bytes:
    """The fields of an event, as what one sees after a click on it."""
    return b"".join(
        data(4, text(10, key) + _annotated(key, value))
        for key, value in event.items()
        if key not in _NOT_TOLD
    )


def _annotated(key: str, value: object) -> bytes:
    if isinstance(value, bool):
        return number(2, value)
    if isinstance(value, int):
        return number(7 if key in ("gpa", "port") else 4, value)
    if isinstance(value, float):
        return double(5, value)
    return text(6, str(value))
