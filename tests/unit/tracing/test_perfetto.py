"""Perfetto's own definitions read back what we write: tracks, slices, counters, flows."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import pytest
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as pb

from minivmm.spec.virtio_mem import RequestType
from minivmm.testing.traced import BASE, BLOCK, Traced
from minivmm.trace import Detail
from minivmm.tracing import protobuf
from minivmm.tracing.feed import Feed
from minivmm.tracing.perfetto import convert
from minivmm.tracing.wish import Wish
from minivmm.units import GIB

TrackEvent: Any = pb.TrackEvent


class Read:
    """A converted trace as Perfetto's definitions see it."""

    def __init__(self, data: bytes) -> None:
        self.trace = pb.Trace()
        self.trace.ParseFromString(data)
        self.tracks = {
            packet.track_descriptor.uuid: packet.track_descriptor
            for packet in self.trace.packet
            if packet.HasField("track_descriptor")
        }
        found = [packet for packet in self.trace.packet if packet.HasField("track_event")]
        self.events = sorted(found, key=lambda packet: packet.timestamp)

    def path(self, uuid: int) -> str:
        """`minivmm work/vmem0/queue 0`."""
        track = self.tracks[uuid]
        name = track.process.process_name or track.name
        return f"{self.path(track.parent_uuid)}/{name}" if track.parent_uuid else str(name)

    def on(self, path: str, kind: int) -> list[Any]:
        """Packets of a kind on tracks of that path, by time."""
        return [
            packet
            for packet in self.events
            if packet.track_event.type == kind
            and self.path(packet.track_event.track_uuid) == f"minivmm work/{path}"
        ]


def recorded(feed: Feed) -> Read:
    header = json.loads(feed.header)
    events = [json.loads(line) for line in feed.take(1 << 20)]
    return Read(b"".join(convert(header, events)))


def follow(traced: Traced) -> Feed:
    return Feed(traced.scene, Wish((Detail.REQUESTS, Detail.EXITS)), lambda: None)


def annotations(packet: Any) -> dict[str, Any]:
    return {
        one.name: getattr(one, one.WhichOneof("value"))
        for one in packet.track_event.debug_annotations
    }


def test_every_request_is_a_slice_with_a_flow_from_its_kick_to_its_interrupt(
    traced: Traced,
) -> None:
    feed = follow(traced)
    for block in range(4):
        traced.plug(block)
    traced.ask(RequestType.UNPLUG_ALL)

    read = recorded(feed)

    begins = read.on("vmem0/queue 0", TrackEvent.TYPE_SLICE_BEGIN)
    ends = read.on("vmem0/queue 0", TrackEvent.TYPE_SLICE_END)
    kicks = read.on("vmem0/kicks of queue 0", TrackEvent.TYPE_INSTANT)
    interrupts = read.on("vmem0/interrupts of queue 0", TrackEvent.TYPE_INSTANT)
    assert [packet.track_event.name for packet in begins] == [
        *(f"PLUG 1 block at {BASE + n * BLOCK:#x} (2M): ACK" for n in range(4)),
        "UNPLUG_ALL: ACK",
    ]
    ids = [[n] for n in range(1, 6)]
    assert [list(packet.track_event.flow_ids) for packet in kicks] == ids
    assert [list(packet.track_event.flow_ids) for packet in begins] == ids
    assert [list(packet.track_event.terminating_flow_ids) for packet in interrupts] == ids
    for one in zip(kicks, begins, ends, interrupts, strict=True):
        times = [packet.timestamp for packet in one]
        assert times == sorted(times)


def test_times_are_the_hosts_in_nanoseconds(traced: Traced) -> None:
    feed = follow(traced)
    traced.plug(0)

    read = recorded(feed)

    began = round(traced.trace.began * 1e9)
    (snapshot,) = (p.clock_snapshot for p in read.trace.packet if p.HasField("clock_snapshot"))
    clocks = {clock.clock_id: clock.timestamp for clock in snapshot.clocks}
    assert clocks == {6: began, 1: round(traced.trace.wall * 1e9)}
    assert all(0 <= packet.timestamp - began < 60 * 10**9 for packet in read.events)
    assert {packet.trusted_packet_sequence_id for packet in read.events} == {1}


def test_sizes_are_counters_in_bytes(traced: Traced) -> None:
    traced.plug(0)
    feed = follow(traced)
    traced.plug(1)
    traced.mem.set_requested_size(GIB // 2)

    read = recorded(feed)

    plugged = read.on("vmem0/plugged-size", TrackEvent.TYPE_COUNTER)
    requested = read.on("vmem0/requested-size", TrackEvent.TYPE_COUNTER)
    assert [packet.track_event.counter_value for packet in plugged] == [BLOCK, 2 * BLOCK]
    assert [packet.track_event.counter_value for packet in requested] == [GIB, GIB // 2]
    unit = read.tracks[plugged[0].track_event.track_uuid].counter.unit
    assert unit == pb.CounterDescriptor.UNIT_SIZE_BYTES


def test_host_work_is_a_slice_of_its_own(traced: Traced) -> None:
    traced.plug(0)
    feed = follow(traced)
    traced.ask(RequestType.UNPLUG, 0)

    read = recorded(feed)

    begins = read.on("vmem0/host", TrackEvent.TYPE_SLICE_BEGIN)
    assert [packet.track_event.name for packet in begins] == ["hide", "discard"]
    about = annotations(begins[1])
    assert (about["gpa"], about["size"]) == (BASE, BLOCK)
    assert about["seconds"] >= 0


def test_exits_and_the_rest_have_tracks_too(traced: Traced) -> None:
    feed = follow(traced)
    fields = {"kind": "mmio-write", "gpa": 0xC000_0000, "size": 4, "value": "0x1", "seconds": 1e-4}
    traced.trace.tell(Detail.EXITS, "vcpu1", "exit", fields)
    traced.trace.emit("machine", "reset", guest=True)

    read = recorded(feed)

    (begin,) = read.on("vcpu1", TrackEvent.TYPE_SLICE_BEGIN)
    (end,) = read.on("vcpu1", TrackEvent.TYPE_SLICE_END)
    assert begin.track_event.name == "mmio-write 0xc0000000"
    assert end.timestamp - begin.timestamp == pytest.approx(100_000, abs=2_000)
    (reset,) = read.on("machine", TrackEvent.TYPE_INSTANT)
    assert annotations(reset)["guest"] is True


def events_of(*chains: tuple[str, int, float]) -> list[dict[str, Any]]:
    """`chain` and `used` events of queue 0 as (name, id, t)."""
    common = {"source": "disk0", "queue": 0}
    return [
        {"n": n, "t": t, "name": name, "id": one, **common}
        | ({"written": 0, "seconds": 0.0} if name == "used" else {"readable": 16, "writable": 1})
        | ({"kick": one, "descriptors": 1} if name == "chain" else {})
        for n, (name, one, t) in enumerate(chains)
    ]


HEADER: dict[str, Any] = {
    "name": "work",
    "t": 0.0,
    "clock": {"wall": 1e9, "monotonic": 10.0},
    "devices": [],
}


def test_requests_that_overlap_never_share_a_lane() -> None:
    """Slices of one track must nest, and these do not."""
    given = events_of(
        ("chain", 1, 1.0),
        ("chain", 2, 2.0),
        ("used", 1, 3.0),
        ("chain", 3, 4.0),
        ("used", 2, 5.0),
        ("used", 3, 6.0),
        ("chain", 4, 7.0),
    )

    read = Read(b"".join(convert(HEADER, given)))

    lanes: dict[int, list[int]] = defaultdict(list)
    for packet in read.events:
        lanes[packet.track_event.track_uuid].append(packet.track_event.type)
    alternating = [[1, 2, 1, 2, 1], [1, 2]]
    assert sorted(lanes.values(), key=len, reverse=True) == alternating
    assert {read.path(uuid) for uuid in lanes} == {"minivmm work/disk0/queue 0"}


def test_requests_that_were_under_way_before_the_trace_are_left_out() -> None:
    assert Read(b"".join(convert(HEADER, events_of(("used", 1, 3.0))))).events == []


def test_answers_without_their_chains_are_shown_all_the_same(event: dict[str, Any]) -> None:
    read = Read(b"".join(convert(HEADER, [event])))

    (answer,) = read.on("vmem0", TrackEvent.TYPE_INSTANT)
    assert answer.track_event.name == "PLUG 64 blocks at 0x100000000 (128M): ACK"


@pytest.mark.parametrize(
    ("value", "encoded"),
    [(0, "00"), (1, "01"), (127, "7f"), (128, "8001"), (300, "ac02"), (-1, "ff" * 9 + "01")],
)
def test_varints(value: int, encoded: str) -> None:
    """300 is the example of the encoding's documentation."""
    assert protobuf.varint(value).hex() == encoded
