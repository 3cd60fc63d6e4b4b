"""Rules make a device misbehave as they say, on both ring formats, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from minivmm.devices.virtio_mem import mischief as rules
from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.devices.virtio_mem.mischief import Mischief, mischief_of
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.errors import UsageError
from minivmm.memory.layout import Window
from minivmm.memory.region import Region
from minivmm.spec.virtio import Feature
from minivmm.spec.virtio_mem import MemConfig, MemRequest, MemResponse, RequestType, ResponseType
from minivmm.testing.driver import DeviceBench
from minivmm.trace import Detail, Event
from minivmm.units import GIB, MIB
from minivmm.virtio.errands import Inline

BLOCK = 2 * MIB
WINDOW = Window(4 * GIB, GIB)
ACK, NACK, BUSY, ERROR = ResponseType


class Bench(DeviceBench):
    """A started driver, without EVENT_IDX: it wants every interrupt."""

    def __init__(self, *, packed: bool = False) -> None:
        spec = VirtioMemSpec(size=GIB, requested_size=GIB, packed=packed, event_idx=False)
        self.mem = VirtioMem(spec, WINDOW, Region(spec.size, spec.host_memory))
        super().__init__(self.mem)
        self.errands = Later()
        self.mem.use(self.errands)
        self.driver.start()
        self.irq.take()

    @property
    def mischief(self) -> Mischief:
        return mischief_of(self.mem)

    def send(self, kind: int = RequestType.PLUG, first: int = 0, count: int = 1) -> list[bytes]:
        """The answers that came back."""
        request = MemRequest(type=kind, addr=WINDOW.base + first * BLOCK, nb_blocks=count)
        self.driver.queues[0].add([request.build()], [MemResponse.SIZE])
        self.driver.kick(0)
        return self.collect()

    def collect(self) -> list[bytes]:
        return [used.data for used in self.driver.queues[0].collect()]

    def ask(self, kind: int = RequestType.PLUG, first: int = 0, count: int = 1) -> int:
        (data,) = self.send(kind, first, count)
        return MemResponse.parse(data.ljust(MemResponse.SIZE, b"\0")).type


class Later(Inline):
    """Reminders wait until the test wants them."""

    def __init__(self) -> None:
        self.waiting: list[tuple[float, Callable[[], None]]] = []

    def later(self, seconds: float, look: Callable[[], None]) -> None:
        self.waiting.append((seconds, look))


@pytest.fixture(params=["split", "packed"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with Bench(packed=request.param == "packed") as made:
        yield made


def test_busy_comes_as_often_as_the_rule_says_and_nothing_is_done(bench: Bench) -> None:
    rule = bench.mischief.on_request("PLUG", times=2).do(rules.answer("BUSY"))

    answers = [bench.ask() for _ in range(3)]

    assert answers == [BUSY, BUSY, ACK]
    assert bench.mem.plugged_size == BLOCK
    assert (rule.seen, rule.fired) == (3, 2)
    assert bench.mem.inspect()["answers"] == {"PLUG": {"BUSY": 2, "ACK": 1}}


@pytest.mark.parametrize("kind", ["NACK", "ERROR", 7, 0xFFFF])
def test_any_answer_can_be_given(bench: Bench, kind: str | int) -> None:
    bench.mischief.on_request("UNPLUG").do(rules.answer(kind))
    bench.ask()

    assert bench.ask(RequestType.UNPLUG) == (ResponseType[kind] if isinstance(kind, str) else kind)
    assert bench.mem.plugged_size == BLOCK


def test_a_rule_starts_with_the_nth_request_of_its_kind(bench: Bench) -> None:
    bench.mischief.on_request("PLUG", nth=2, times=1).do(rules.answer("NACK"))

    assert bench.ask(first=0) == ACK
    assert bench.ask(RequestType.STATE, 0) == ACK
    assert bench.ask(first=1) == NACK
    assert bench.ask(first=1) == ACK


def test_a_rule_may_be_about_a_range_of_addresses(bench: Bench) -> None:
    start = WINDOW.base + 4 * BLOCK
    bench.mischief.on_request(gpa=(start, start + BLOCK)).do(rules.answer("ERROR"))

    assert bench.ask(first=0, count=4) == ACK
    assert bench.ask(first=5) == ACK
    assert bench.ask(first=4) == ERROR
    assert bench.ask(RequestType.STATE, 3, 2) == ERROR
    assert bench.ask(RequestType.UNPLUG_ALL) == ACK


def test_chance_is_the_same_for_the_same_seed() -> None:
    def answers(seed: int) -> list[int]:
        with Bench() as bench:
            rule = bench.mischief.on_request("STATE", probability=0.5, seed=seed)
            rule.do(rules.answer("BUSY"))
            found = [bench.ask(RequestType.STATE) for _ in range(64)]
            assert found.count(BUSY) == rule.fired
            return found

    assert answers(1) == answers(1) != answers(2)
    assert 10 < answers(1).count(BUSY) < 54


def test_silence_leaves_the_request_unanswered_and_the_next_is_served(bench: Bench) -> None:
    bench.mischief.on_request("PLUG", times=1).do(rules.silence())

    assert bench.send(first=0) == []
    assert bench.mem.plugged_size == 0
    assert bench.irq.take() == []
    assert len(bench.send(RequestType.STATE, 1)) == 1


def test_a_delayed_answer_comes_with_its_interrupt(bench: Bench) -> None:
    bench.mischief.on_request(times=1).do(rules.delay(0.5))

    assert bench.send() == []
    assert bench.mem.plugged_size == BLOCK
    ((seconds, look),) = bench.errands.waiting
    look()

    assert seconds == 0.5
    assert [MemResponse.parse(data).type for data in bench.collect()] == [ACK]
    assert bench.irq.take() == [1]


def test_a_delayed_answer_to_a_driver_that_is_gone_touches_nothing(bench: Bench) -> None:
    bench.mischief.on_request().do(rules.delay(0.5))
    bench.send()
    bench.driver.reset()
    before = bench.memory.read(0, 2 * MIB)
    ((_, look),) = bench.errands.waiting

    look()

    assert bench.memory.read(0, 2 * MIB) == before
    assert bench.irq.take() == []


def test_interrupts_are_dropped_or_repeated(bench: Bench) -> None:
    bench.mischief.on_request("PLUG", nth=1, times=1).do(rules.drop_interrupt())
    bench.mischief.on_request("PLUG", nth=2, times=1).do(rules.repeat_interrupt(3))

    bench.ask(first=0)
    dropped = bench.irq.take()
    bench.ask(first=1)
    repeated = bench.irq.take()
    bench.ask(first=2)

    assert dropped == []
    assert repeated == [1, 1, 1]
    assert bench.irq.take() == [1]


def test_the_response_can_be_of_any_bytes_and_of_fewer(bench: Bench) -> None:
    bench.mischief.on_request("PLUG", nth=1, times=1).do(rules.respond(b"\x03\x00\xaa"))
    bench.mischief.on_request("PLUG", nth=2, times=1).do(rules.shorten(1))
    bench.mischief.on_request("PLUG", nth=3, times=1).do(rules.used_length(4000))

    assert bench.send(first=0) == [b"\x03\x00\xaa"]
    assert bench.send(first=1) == [b"\x00"]
    assert bench.mem.plugged_size == 2 * BLOCK
    ring = bench.driver.queues[0]
    ring.add([MemRequest(type=RequestType.PLUG, addr=WINDOW.base + 2 * BLOCK, nb_blocks=1).build()],
             [MemResponse.SIZE])  # fmt: skip
    bench.driver.kick(0)
    (used,) = ring.collect()
    assert used.written == 4000


def test_what_a_short_answer_does_not_write_stays_as_it_was() -> None:
    with Bench() as bench:
        bench.mischief.on_request().do(rules.shorten(0))
        ring = bench.driver.queues[0]
        request = MemRequest(type=RequestType.UNPLUG, addr=WINDOW.base, nb_blocks=1).build()
        ring.add([request], [MemResponse.SIZE])
        queue = bench.function.transport._service.queues[0]
        assert queue is not None
        chain = queue.pop()
        assert chain is not None
        ((gpa, size),) = chain.writable_parts
        bench.memory.write(gpa, b"\x5a" * size)
        bench.mem.handle_queue(0, OneChain(queue, chain))

        assert bench.memory.read(gpa, size) == b"\x5a" * size


class OneChain:
    """A queue of one chain that was popped before."""

    def __init__(self, real: Any, chain: Any) -> None:
        self.real, self.index, self.size, self.interrupted = real, 0, 1, False
        self._chain = chain

    def chains(self) -> Iterator[Any]:
        yield self._chain

    def complete(self, chain: Any, written: int = 0) -> None:
        self.real.complete(chain, written)

    def publish(self) -> bool:
        return bool(self.real.publish())


def test_two_used_elements_tell_of_one_request() -> None:
    with Bench() as bench:
        bench.mischief.on_request("PLUG", times=1).do(rules.twice())
        ring = bench.driver.queues[0]
        ring.add([MemRequest(type=RequestType.PLUG, addr=WINDOW.base, nb_blocks=1).build()],
                 [MemResponse.SIZE])  # fmt: skip

        bench.driver.kick(0)

        assert ring.used_idx == 2  # type: ignore[attr-defined]
        first, second = (ring.used_element(n) for n in (0, 1))  # type: ignore[attr-defined]
        assert first == second


def test_the_used_index_is_wrong_until_the_next_answer() -> None:
    with Bench() as bench:
        bench.mischief.on_request("PLUG", times=1).do(rules.break_index(5))
        ring = bench.driver.queues[0]
        add = [MemRequest(type=RequestType.STATE, addr=WINDOW.base, nb_blocks=1).build()]
        plug = [MemRequest(type=RequestType.PLUG, addr=WINDOW.base, nb_blocks=1).build()]
        ring.add(plug, [MemResponse.SIZE])
        bench.driver.kick(0)
        wrong = ring.used_idx  # type: ignore[attr-defined]
        ring.add(add, [MemResponse.SIZE])
        bench.driver.kick(0)

        assert (wrong, ring.used_idx) == (6, 2)  # type: ignore[attr-defined]


def test_a_packed_ring_gets_a_buffer_that_there_is_not() -> None:
    with Bench(packed=True) as bench:
        bench.mischief.on_request("PLUG", times=1).do(rules.break_index())

        with pytest.raises(KeyError):
            bench.send()
        assert bench.driver.has(Feature.RING_PACKED)


@pytest.mark.parametrize("kind", ["PLUG", "UNPLUG", "UNPLUG_ALL"])
def test_a_host_that_refuses_is_answered_busy_and_changes_nothing(bench: Bench, kind: str) -> None:
    bench.ask(first=8)
    bench.mischief.on_request(kind, times=1).do(rules.refuse_host())

    at = 0 if kind == "PLUG" else 8
    assert bench.ask(RequestType[kind], at) == BUSY
    assert list(bench.mem.blocks.plugged_ranges()) == [(8, 1)]
    assert bench.ask(RequestType[kind], at) == ACK


def test_the_target_changes_at_the_kth_request(bench: Bench) -> None:
    bench.mischief.on_request("PLUG", nth=2).do(rules.resize(BLOCK))

    assert [bench.ask(first=0), bench.ask(first=1)] == [ACK, NACK]
    assert bench.mem.requested_size == BLOCK
    assert 0 in bench.irq.take()


def test_the_usable_region_shrinks_below_what_is_asked_for(bench: Bench) -> None:
    bench.mischief.on_request("PLUG", nth=2, times=1).do(rules.shrink_usable(BLOCK))

    assert [bench.ask(first=0), bench.ask(first=1)] == [ACK, ERROR]
    assert MemConfig.parse(bench.driver.read_config(MemConfig.SIZE)).usable_region_size == BLOCK


@pytest.mark.parametrize(
    ("field", "value"),
    [("block-size", 3 * MIB), ("block-size", 0), ("block-size", 1 << 63), ("addr", 0x1234),
     ("usable-region-size", 1), ("plugged-size", 5), ("node-id", 77), ("region-size", 0)],
)  # fmt: skip
def test_a_field_shows_what_it_is_not(bench: Bench, field: str, value: int) -> None:
    honest = MemConfig.parse(bench.driver.read_config(MemConfig.SIZE))
    bench.mischief.on_config(field).do(rules.show(value))

    shown = MemConfig.parse(bench.driver.read_config(MemConfig.SIZE))

    name = field.replace("-", "_")
    assert getattr(shown, name) == value
    setattr_free = {key: getattr(shown, key) for key in vars(honest) if key != name}
    assert setattr_free == {key: getattr(honest, key) for key in vars(honest) if key != name}
    assert bench.mem.block_size == BLOCK


def test_a_change_between_two_reads_moves_the_generation(bench: Bench) -> None:
    bench.mischief.on_config("requested-size", nth=2, times=1).do(rules.resize_now(64 * MIB))
    before = bench.driver.get("config_generation")
    honest, offset = bench.mem.config_space(), MemConfig.OFFSETS["requested_size"]
    first = bench.function.transport.read_config(offset, 4)
    second = bench.function.transport.read_config(offset + 4, 4)

    assert first == int.from_bytes(honest[offset : offset + 4], "little")
    assert second == 0
    assert bench.driver.get("config_generation") == (before + 1) & 0xFF
    assert bench.mem.requested_size == 64 * MIB


def test_config_interrupts_are_dropped_or_repeated(bench: Bench) -> None:
    bench.mischief.on_config_interrupt(nth=1, times=1).do(rules.drop())
    bench.mischief.on_config_interrupt(nth=2, times=1).do(rules.repeat(3))

    taken = []
    for size in (BLOCK, 2 * BLOCK, 3 * BLOCK):
        bench.mem.set_requested_size(size)
        taken.append(bench.irq.take())

    assert taken == [[], [0, 0, 0], [0]]


def test_rules_add_up_on_one_request(bench: Bench) -> None:
    bench.mischief.on_request("PLUG").do(rules.answer("BUSY"), rules.delay(1))
    bench.mischief.on_request(times=1).do(rules.repeat_interrupt(2))

    assert bench.send() == []
    bench.errands.waiting[0][1]()

    assert [MemResponse.parse(data).type for data in bench.collect()] == [BUSY]
    assert bench.irq.take() == [1, 1]


def test_what_a_rule_did_is_told_in_the_trace_with_the_life_of_the_request(bench: Bench) -> None:
    seen: list[Event] = []
    bench.trace.follow(seen.append, Detail.REQUESTS)
    bench.mischief.on_request("PLUG").do(rules.answer("NACK"))

    bench.ask(first=3)

    names = [event.name for event in seen]
    assert names == ["kick", "chain", "mischief", "request", "answer", "used", "interrupt"]
    assert seen[2].fields["what"] == "answer NACK"
    assert {event.fields["id"] for event in seen if event.name != "mischief"} == {1}


def test_without_rules_the_device_is_as_it_was(bench: Bench) -> None:
    before, signals = dict(vars(bench.mem)), bench.mem.signals
    mischief = bench.mischief
    assert vars(bench.mem) == before
    mischief.on_request("PLUG").do(rules.answer("BUSY"))
    assert mischief_of(bench.mem) is mischief

    mischief.clear()

    assert vars(bench.mem) == before
    assert bench.mem.signals is signals
    assert bench.ask() == ACK


def test_rules_and_their_counts_can_be_inspected(bench: Bench) -> None:
    bench.mischief.on_request("PLUG", nth=2, times=1).do(rules.answer("BUSY"), rules.delay(0.5))
    bench.ask()

    (shown,) = bench.mem.inspect()["mischief"]  # type: ignore[misc]
    assert shown == {
        "rule": "PLUG, from number 2, once: answer BUSY, delay 0.5 s", "seen": 1, "fired": 0
    }  # fmt: skip
    assert len(bench.mischief.idle_rules()) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda mischief: mischief.on_request("PULG"),
        lambda mischief: mischief.on_request(nth=0),
        lambda mischief: mischief.on_request(times=0),
        lambda mischief: mischief.on_request(probability=0),
        lambda mischief: mischief.on_request(gpa=(5, 5)),
        lambda mischief: mischief.on_config("block_size"),
        lambda mischief: mischief.on_config("node-id").do(rules.show(1 << 16)),
        lambda mischief: rules.answer("LAZY"),
        lambda mischief: rules.answer(1 << 16),
        lambda mischief: rules.respond(bytes(11)),
        lambda mischief: rules.shorten(11),
        lambda mischief: rules.delay(-1),
        lambda mischief: rules.repeat(0),
        lambda mischief: rules.twice(65),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(make: Callable[[Mischief], object]) -> None:
    with Bench() as bench, pytest.raises(UsageError) as caught:
        make(bench.mischief)

    assert "\n" not in str(caught.value)
