"""What a followed virtio-mem device tells of its requests, on both ring formats; and what not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.memory.layout import Window
from minivmm.memory.region import Region
from minivmm.spec.virtio_mem import MemRequest, MemResponse, RequestType
from minivmm.testing.driver import DeviceBench
from minivmm.testing.slow_host import SlowHost
from minivmm.trace import Detail, Event
from minivmm.units import GIB, MIB

BLOCK = 2 * MIB
WINDOW = Window(4 * GIB, GIB)
LIFE = ["kick", "chain", "request", "allow", "show", "answer", "used", "interrupt"]


def make(**fields: Any) -> DeviceBench:
    spec = VirtioMemSpec(**{"size": GIB, "requested_size": GIB, "protect": "report", **fields})
    return DeviceBench(VirtioMem(spec, WINDOW, Region(spec.size, spec.host_memory)))


@pytest.fixture(params=["split", "packed"])
def bench(request: pytest.FixtureRequest) -> Iterator[DeviceBench]:
    with make(packed=request.param == "packed") as made:
        made.driver.start()
        yield made


def follow(bench: DeviceBench) -> tuple[list[Event], Callable[[], None]]:
    seen: list[Event] = []
    return seen, bench.trace.follow(seen.append, Detail.REQUESTS)


def asking(kind: RequestType, first: int = 0, count: int = 1) -> bytes:
    return MemRequest(type=kind, addr=WINDOW.base + first * BLOCK, nb_blocks=count).build()


def ask(bench: DeviceBench, *requests: bytes) -> None:
    """All of them with one doorbell."""
    ring = bench.driver.queues[0]
    for request in requests:
        ring.add([request], [MemResponse.SIZE])
    bench.driver.kick(0)
    assert len(ring.collect()) == len(requests)


def names(events: list[Event]) -> list[str]:
    return [event.name for event in events]


def test_the_life_of_a_request_carries_one_id(bench: DeviceBench) -> None:
    seen, _ = follow(bench)

    ask(bench, asking(RequestType.PLUG, 3, 2))

    assert names(seen) == LIFE
    assert {event.source for event in seen} == {"vmem0"}
    assert {event.fields["id"] for event in seen} == {1}
    by_name = {event.name: event.fields for event in seen}
    asked = {"type": "PLUG", "gpa": WINDOW.base + 3 * BLOCK, "blocks": 2, "size": 2 * BLOCK}
    assert by_name["request"] == {"id": 1, **asked}
    assert by_name["answer"] == {"id": 1, **asked, "answer": "ACK", "plugged": 2 * BLOCK}
    assert by_name["chain"] == {
        "id": 1,
        "queue": 0,
        "kick": 1,
        "readable": MemRequest.SIZE,
        "writable": MemResponse.SIZE,
        "descriptors": 2,
    }
    assert by_name["used"]["written"] == MemResponse.SIZE
    assert by_name["interrupt"]["ids"] == [1]
    assert (by_name["show"]["gpa"], by_name["show"]["size"]) == (asked["gpa"], asked["size"])


def test_one_kick_may_bring_several_requests(bench: DeviceBench) -> None:
    seen, _ = follow(bench)

    ask(bench, *(asking(RequestType.STATE, block) for block in range(3)))

    chains = [event.fields for event in seen if event.name == "chain"]
    assert [(one["id"], one["kick"]) for one in chains] == [(1, 1), (2, 1), (3, 1)]
    assert names(seen).count("kick") == 1
    told = [one for event in seen if event.name == "interrupt" for one in event.fields["ids"]]
    answered = [event.fields["id"] for event in seen if event.name == "answer"]
    assert answered == [1, 2, 3]
    assert told == [1]  # by EVENT_IDX this driver does not want to hear of the others


def test_unplugging_tells_what_it_costs_the_host(bench: DeviceBench) -> None:
    ask(bench, asking(RequestType.PLUG, 0, 4))
    seen, _ = follow(bench)

    ask(bench, asking(RequestType.UNPLUG, 0, 4))

    assert names(seen)[3:5] == ["hide", "discard"]
    assert all(event.fields["seconds"] >= 0 for event in seen[3:5])
    assert seen[4].fields["size"] == 4 * BLOCK


def test_a_refusal_is_told_with_its_reason_and_costs_the_host_nothing(bench: DeviceBench) -> None:
    seen, _ = follow(bench)

    ask(bench, asking(RequestType.UNPLUG, 0))

    assert names(seen) == ["kick", "chain", "request", "answer", "used", "interrupt"]
    assert seen[3].fields["answer"] == "ERROR"
    assert seen[3].fields["why"]


def test_unknown_requests_are_told_as_they_are(bench: DeviceBench) -> None:
    seen, _ = follow(bench)

    ask(bench, MemRequest(type=77, addr=0, nb_blocks=0).build())

    assert seen[2].fields == {"id": 1, "type": 77}


def test_work_aside_belongs_to_its_request_and_no_second_kick_is_made_up(
    bench: DeviceBench,
) -> None:
    errands = SlowHost()
    bench.device.use(errands)
    ask(bench, asking(RequestType.PLUG, 0, 64))
    ring = bench.driver.queues[0]
    seen, _ = follow(bench)

    ring.add([asking(RequestType.UNPLUG, 0, 64)], [MemResponse.SIZE])
    bench.driver.kick(0)
    assert names(seen) == ["kick", "chain", "request", "hide"]
    errands.finish()

    assert names(seen)[4:] == ["discard", "answer", "used", "interrupt"]
    assert {event.fields["id"] for event in seen} == {1}
    assert len(ring.collect()) == 1


def test_one_that_was_at_work_before_is_answered_without_an_id(bench: DeviceBench) -> None:
    errands = SlowHost()
    bench.device.use(errands)
    ask(bench, asking(RequestType.PLUG, 0, 64))
    bench.driver.queues[0].add([asking(RequestType.UNPLUG, 0, 64)], [MemResponse.SIZE])
    bench.driver.kick(0)
    seen, _ = follow(bench)

    errands.finish()

    assert names(seen) == ["answer", "interrupt"]
    assert all("id" not in event.fields for event in seen)


def test_a_device_reset_in_the_middle_answers_and_hands_nothing_back(bench: DeviceBench) -> None:
    errands = SlowHost()
    bench.device.use(errands)
    ask(bench, asking(RequestType.PLUG, 0, 64))
    seen, _ = follow(bench)
    bench.driver.queues[0].add([asking(RequestType.UNPLUG, 0, 64)], [MemResponse.SIZE])
    bench.driver.kick(0)

    bench.function.transport.reset()

    assert names(seen)[4:] == ["reset", "discard", "answer"]
    assert seen[-1].fields["id"] == 1


def test_what_the_host_refuses_is_told(bench: DeviceBench) -> None:
    seen, _ = follow(bench)
    device = bench.device
    assert isinstance(device, VirtioMem)

    def refuse(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    device.region.protect = refuse  # type: ignore[method-assign]
    ask(bench, asking(RequestType.PLUG, 0))

    allow, answer = seen[3], seen[4]
    assert (allow.name, answer.name) == ("allow", "answer")
    assert "Cannot allocate memory" in str(allow.fields["error"])
    assert answer.fields["answer"] == "BUSY"


def test_a_machine_reset_is_told_without_an_id(bench: DeviceBench) -> None:
    ask(bench, asking(RequestType.PLUG, 0, 4))
    seen, _ = follow(bench)

    bench.function.system_reset()

    assert names(seen) == ["reset", "hide", "discard"]
    assert "id" not in seen[-1].fields


def test_populating_is_told_only_where_it_happens() -> None:
    with make(prealloc=True) as bench:
        bench.driver.start()
        seen, _ = follow(bench)

        ask(bench, asking(RequestType.PLUG, 0))

        assert names(seen)[3:6] == ["allow", "populate", "show"]


def test_a_config_interrupt_is_told_with_the_resize_that_caused_it(bench: DeviceBench) -> None:
    seen, _ = follow(bench)
    device = bench.device
    assert isinstance(device, VirtioMem)

    device.set_requested_size(256 * MIB)

    assert names(seen) == ["resize", "config"]
    assert seen[0].fields["requested-size"] == 256 * MIB


def test_sizes_are_those_of_the_moment(bench: DeviceBench) -> None:
    device = bench.device
    ask(bench, asking(RequestType.PLUG, 0, 4))

    assert device.sizes() == {
        "plugged-size": 4 * BLOCK,
        "requested-size": GIB,
        "usable-size": GIB,
    }


def instructions(bench: DeviceBench, request: bytes) -> int:
    """Bytecode instructions of the device's whole part in one request, its doorbell to its end."""
    bench.driver.queues[0].add([request], [MemResponse.SIZE])
    counted = 0

    def count(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal counted
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        counted += event == "opcode"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        bench.function.transport.kick(0)
    finally:
        sys.settrace(before)
    assert len(bench.driver.queues[0].collect()) == 1
    return counted


def test_a_trace_that_is_over_has_left_nothing_behind(bench: DeviceBench) -> None:
    """Not one instruction more than before, and the very same queue."""
    state = asking(RequestType.STATE)
    queue = bench.function.transport._service.queues[0]
    for _ in range(3):
        instructions(bench, state)
    before = instructions(bench, state)

    seen, stop = follow(bench)
    during = instructions(bench, state)
    stop()
    after = instructions(bench, state)

    assert names(seen) == ["kick", "chain", "request", "answer", "used", "interrupt"]
    assert before == after < during
    assert bench.function.transport._service.queues[0] is queue
