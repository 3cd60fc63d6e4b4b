"""The event stream itself: ring, sinks, details on demand."""

from minivmm.trace import RING_SIZE, Detail, Event, Trace


def test_the_ring_keeps_the_latest_events() -> None:
    trace = Trace()
    for number in range(RING_SIZE + 2):
        trace.emit("vmem0", "answer", number=number)

    kept = trace.recent()

    assert len(kept) == RING_SIZE
    assert (kept[0].fields["number"], kept[-1].fields["number"]) == (2, RING_SIZE + 1)


def test_people_read_addresses_in_hexadecimal() -> None:
    event = Event(0.0, "vmem0", "answer", {"gpa": 0x1_0000_0000, "blocks": 64})

    assert str(event) == "vmem0 answer gpa=0x100000000 blocks=64"


def test_details_reach_those_who_want_them_and_never_the_ring() -> None:
    trace = Trace()
    plain: list[Event] = []
    detailed: list[Event] = []
    trace.follow(plain.append)
    trace.follow(detailed.append, Detail.REQUESTS)

    trace.emit("vmem0", "resize")
    trace.tell(Detail.REQUESTS, "vmem0", "kick", {"queue": 0})
    trace.tell(Detail.EXITS, "vcpu0", "exit", {})

    assert [event.name for event in plain] == ["resize"]
    assert [event.name for event in detailed] == ["resize", "kick"]
    assert [event.name for event in trace.recent()] == ["resize"]


def test_whoever_tells_a_detail_is_switched_once_for_all_followers() -> None:
    trace = Trace()
    switched: list[bool] = []
    trace.on_detail(Detail.REQUESTS, switched.append)

    first = trace.follow(lambda _: None, Detail.REQUESTS)
    second = trace.follow(lambda _: None, Detail.REQUESTS, Detail.EXITS)
    first()
    assert switched == [True]
    second()
    assert switched == [True, False]


def test_one_that_comes_late_is_switched_on_at_once() -> None:
    trace = Trace()
    switched: list[bool] = []
    trace.follow(lambda _: None, Detail.EXITS)

    trace.on_detail(Detail.EXITS, switched.append)
    trace.on_detail(Detail.REQUESTS, switched.append)

    assert switched == [True]


def test_a_sink_that_follows_twice_stops_once_at_a_time() -> None:
    trace = Trace()
    seen: list[Event] = []
    stop = trace.follow(seen.append)
    trace.follow(seen.append)

    stop()
    trace.emit("machine", "reset")

    assert len(seen) == 1
