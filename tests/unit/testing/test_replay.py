"""A recorded driver is replayed on the device model; what differs is found, and made small."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from minivmm.cli import main
from minivmm.devices.virtio_mem import mischief as rules
from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.devices.virtio_mem.mischief import mischief_of
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.errors import UsageError
from minivmm.machine_spec import MachineSpec, spec_to_json
from minivmm.memory.layout import Window
from minivmm.memory.region import Region
from minivmm.spec.virtio_mem import MemConfig, MemRequest, MemResponse, RequestType
from minivmm.testing.driver import DeviceBench
from minivmm.testing.recording import Conversation, conversations, record_filter
from minivmm.testing.replay import core, replay, shrink
from minivmm.trace import Detail
from minivmm.tracing.feed import Feed
from minivmm.tracing.reader import read_file
from minivmm.tracing.scene import Scene
from minivmm.tracing.wish import Wish
from minivmm.units import GIB, MIB

BLOCK = 2 * MIB
BASE = 4 * GIB
RECORDED = Path(__file__).parent / "recorded"
PLUG, UNPLUG, UNPLUG_ALL, STATE = RequestType


class Recorder(DeviceBench):
    """A device of `size` bytes with its driver, recorded from its first register on."""

    def __init__(self, size: int = 4 * GIB, **fields: Any) -> None:
        spec = VirtioMemSpec(size=size, **fields)
        self.mem = VirtioMem(spec, Window(BASE, size), Region(size, spec.host_memory))
        super().__init__(self.mem)
        self.scene = Scene(
            self.trace,
            name="work",
            cpus=1,
            spec=spec_to_json(MachineSpec(devices=(spec,))),
            devices=[self.mem],
            clock=lambda: None,
        )
        wish = Wish((Detail.REQUESTS,), record_filter(["vmem0"]))
        self.feed = Feed(self.scene, wish, lambda: None)

    def ask(self, kind: int, first: int = 0, count: int = 1) -> int:
        request = MemRequest(type=kind, addr=BASE + first * BLOCK, nb_blocks=count).build()
        ring = self.driver.queues[0]
        ring.add([request], [MemResponse.SIZE])
        self.driver.kick(0)
        done = ring.collect()
        return MemResponse.parse(done[0].data.ljust(MemResponse.SIZE, b"\0")).type if done else -1

    def grow_and_shrink(self, size: int) -> None:
        """As Linux does it: reads the configuration, then 64 blocks at a time; down in twos."""
        for target in (size, 0):
            self.mem.set_requested_size(target)
            self.driver.read_config(MemConfig.SIZE)
            for at in range(0, size // BLOCK, 64):
                self.ask(PLUG if target else UNPLUG, at, 64)

    def write(self, folder: Path) -> Path:
        path = folder / "work.jsonl"
        lines = [self.feed.header, *self.feed.take(1 << 20)]
        path.write_text("".join(f"{line}\n" for line in lines))
        return path


@pytest.fixture
def bench() -> Iterator[Recorder]:
    with Recorder() as made:
        made.driver.start()
        yield made


def heard(path: Path) -> Conversation:
    (found,) = conversations(read_file(path))
    return found


def changed(path: Path, event: Callable[[dict[str, Any]], bool], **fields: Any) -> Path:
    """A copy of the recording in which the first such event says something else."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    next(line for line in lines[1:] if event(line)).update(fields)
    other = path.with_name("changed.jsonl")
    other.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return other


def test_a_driver_that_grows_and_shrinks_is_told_the_same_again(
    bench: Recorder, tmp_path: Path
) -> None:
    bench.grow_and_shrink(4 * GIB)
    path = bench.write(tmp_path)

    found = heard(path)
    began = time.perf_counter()
    assert replay(found) is None

    assert time.perf_counter() - began < 2
    assert found.counts()["request"] == 64
    assert found.counts()["config-read"] >= 2 * MemConfig.SIZE
    assert path.stat().st_size < 100_000


def test_everything_that_can_be_asked_is_replayed(bench: Recorder, tmp_path: Path) -> None:
    bench.mem.set_requested_size(GIB)
    bench.ask(PLUG, 0, 4)
    bench.ask(PLUG, 2, 4)
    bench.ask(STATE, 0, 8)
    bench.ask(STATE, 0, 4)
    bench.ask(77)
    bench.ask(UNPLUG, 3)
    bench.mem.kick()
    bench.driver.reset()
    bench.driver.start()
    bench.ask(UNPLUG_ALL)
    bench.ask(PLUG, 1)
    bench.function.system_reset()
    bench.trace.emit("machine", "reset", guest=True)
    bench.driver.probe()
    bench.host.assign_bars()
    found = heard(bench.write(tmp_path))

    assert replay(found) is None
    assert set(found.counts()) == {"request", "resize", "kick", "features", "reset", "system-reset"}
    assert [s.told["answer"] for s in found.steps if s.kind == "request"] == [
        "ACK", "ERROR", "ACK", "ACK", "ERROR", "ACK", "ACK", "ACK"
    ]  # fmt: skip
    assert [s.told["found"] for s in found.steps if "found" in s.told] == ["MIXED", "PLUGGED"]


def test_what_the_host_refused_is_refused_again(tmp_path: Path) -> None:
    with Recorder(prealloc=True) as bench:
        bench.driver.start()
        bench.mem.set_requested_size(GIB)
        populate = bench.mem.region.populate

        def refuse(offset: int, length: int) -> None:
            raise OSError("no memory")

        bench.mem.region.populate = refuse  # type: ignore[method-assign]
        bench.ask(PLUG, 0, 4)
        bench.mem.region.populate = populate  # type: ignore[method-assign]
        bench.mem.region.populate = lambda *_: None  # type: ignore[method-assign]
        bench.ask(PLUG, 0, 4)
        found = heard(bench.write(tmp_path))

    assert [s.told["answer"] for s in found.steps if s.kind == "request"] == ["BUSY", "ACK"]
    assert replay(found) is None


def test_a_trace_that_began_with_memory_plugged_is_replayed(tmp_path: Path) -> None:
    with Recorder(requested_size=GIB) as bench:
        bench.driver.start()
        bench.ask(PLUG, 5, 3)
        bench.feed.close()
        bench.feed = Feed(bench.scene, Wish((), ()), lambda: None)
        bench.ask(UNPLUG, 6)
        bench.ask(UNPLUG, 6)
        found = heard(bench.write(tmp_path))

    assert [s.told["answer"] for s in found.steps] == ["ACK", "ERROR"]
    assert replay(found) is None


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"answer": "NACK"}, "answer"),
        ({"plugged": 0}, "change"),
    ],
)
def test_a_planted_answer_is_found_and_shrunk(
    bench: Recorder, tmp_path: Path, fields: dict[str, Any], key: str
) -> None:
    bench.grow_and_shrink(4 * GIB)
    path = changed(
        bench.write(tmp_path),
        lambda event: event["name"] == "answer" and event["gpa"] == BASE + 30 * 64 * BLOCK,
        **fields,
    )

    found = heard(path)
    deviation = replay(found)
    assert deviation is not None
    numbers = shrink(found, deviation)

    assert deviation.key == key
    kinds = [found.steps[number].kind for number in numbers]
    assert kinds.count("request") == 1
    assert len(kinds) <= 2


def test_a_planted_config_value_is_found_and_shrunk(bench: Recorder, tmp_path: Path) -> None:
    bench.grow_and_shrink(GIB)
    at = MemConfig.OFFSETS["requested_size"]
    path = changed(
        bench.write(tmp_path),
        lambda event: event["name"] == "config-read" and event["offset"] == at + 3,
        value="0x41",
    )

    deviation = replay(heard(path))

    assert deviation is not None
    assert (deviation.recorded, deviation.model) == ("0x41", "0x40")
    assert len(shrink(heard(path), deviation)) == 2


class Forgetful(VirtioMem):
    """A planted bug: after an unplug of what was plugged with others, block 7 cannot be plugged."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        unplug, plug = self.blocks.unplug, self.blocks.plug
        self._cut = False

        def cut(first: int, count: int) -> None:
            self._cut = self._cut or (first > 0 and self.blocks.state(first - 1, 1) == 0)
            unplug(first, count)

        def refuse(first: int, count: int) -> None:
            if self._cut and first <= 7 < first + count:
                raise RuntimeError("planted")
            plug(first, count)

        self.blocks.unplug = cut  # type: ignore[method-assign]
        self.blocks.plug = refuse  # type: ignore[method-assign]


def test_a_bug_that_needs_a_history_is_shrunk_to_three_requests(tmp_path: Path) -> None:
    rng = Random(6)
    with Recorder(size=GIB, requested_size=GIB) as bench:
        bench.driver.start()
        for _ in range(300):
            bench.ask(rng.choice((PLUG, UNPLUG, STATE)), rng.randrange(32), rng.randrange(1, 4))
        found = heard(bench.write(tmp_path))
    assert replay(found) is None

    deviation = replay(found, Forgetful)
    assert deviation is not None
    numbers = shrink(found, deviation, Forgetful)

    assert len(numbers) <= 3
    assert replay(found, Forgetful, steps=numbers) == deviation
    assert replay(found, steps=numbers) is None


def test_the_core_is_a_trace_that_shows_the_same(bench: Recorder, tmp_path: Path) -> None:
    mischief_of(bench.mem).on_request("UNPLUG", nth=9, times=1).do(rules.answer("ERROR"))
    bench.grow_and_shrink(4 * GIB)
    path, small = bench.write(tmp_path), tmp_path / "core.jsonl"

    assert main.run(["replay", str(path), "--core", str(small)]) == 1

    found = heard(small)
    deviation = replay(found)
    assert deviation is not None
    assert (deviation.recorded, deviation.model) == ("ERROR", "ACK")
    assert found.counts() == {"resize": 1, "request": 2}


@pytest.mark.parametrize(
    ("make", "recorded"),
    [
        (lambda m: m.on_request("PLUG", nth=3, times=1).do(rules.silence()), None),
        (lambda m: m.on_request("PLUG", nth=3, times=1).do(rules.used_length(4)), 4),
        (lambda m: m.on_request("PLUG", nth=3, times=1).do(rules.answer("BUSY")), "BUSY"),
        (lambda m: m.on_config_interrupt(times=1).do(rules.drop()), 0),
        (lambda m: m.on_config("requested-size", times=1).do(rules.show(1)), "0x1"),
    ],
)
def test_what_a_misbehaving_device_said_is_found(
    bench: Recorder, tmp_path: Path, make: Callable[..., object], recorded: object
) -> None:
    make(mischief_of(bench.mem))
    bench.grow_and_shrink(GIB)

    deviation = replay(heard(bench.write(tmp_path)))

    assert deviation is not None
    assert deviation.recorded == recorded


def test_replay_says_that_all_is_as_recorded(
    bench: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.grow_and_shrink(GIB)
    path = bench.write(tmp_path)

    assert main.run(["replay", str(path)]) == 0
    assert "vmem0: as recorded: " in capsys.readouterr().out
    assert main.run(["replay", str(path), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["memory-devices"]
    assert (row["equal"], row["request"], row["resize"]) == (True, 16, 2)


def test_replay_explains_a_deviation(
    bench: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mischief_of(bench.mem).on_request("PLUG", nth=5, times=1).do(rules.answer("NACK"))
    bench.grow_and_shrink(GIB)

    assert main.run(["replay", str(bench.write(tmp_path))]) == 1

    first, *_, last = capsys.readouterr().out.splitlines()
    text = f"PLUG 64 blocks at {BASE + 4 * 64 * BLOCK:#x} (128M)"
    assert f"{text}: answer was NACK, the model's is ACK" in first
    assert last.endswith(text)


def test_a_trace_with_a_gap_cannot_be_replayed(bench: Recorder, tmp_path: Path) -> None:
    path = bench.write(tmp_path)
    gap = {"n": 1, "t": 1.0, "source": "trace", "name": "dropped", "count": 3}
    path.write_text(path.read_text() + json.dumps(gap) + "\n")

    with pytest.raises(UsageError, match="3 events are missing"):
        conversations(read_file(path))


@pytest.mark.parametrize("text", ["", "{}\n", '{"schema": 1, "clock": {}}\n'])
def test_what_is_no_trace_is_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    path = tmp_path / "none.jsonl"
    path.write_text(text)

    assert main.run(["replay", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_device_that_is_not_there_is_named(bench: Recorder, tmp_path: Path) -> None:
    assert main.run(["replay", str(bench.write(tmp_path)), "--device", "vmem9"]) == 2


def test_steps_can_be_left_out(bench: Recorder, tmp_path: Path) -> None:
    bench.grow_and_shrink(GIB)
    found = heard(bench.write(tmp_path))

    lines = core(found, [0])
    assert [line.get("name") for line in lines[1:]] == [e["name"] for e in found.steps[0].events]
    assert replay(replace(found, steps=found.steps[:5])) is None


LINUX = RECORDED / "debian-6.12.jsonl"
"""Debian's 6.12 as it grew to 4 GiB and shrank to nothing, by boot --record."""


def test_linux_as_it_was_recorded_is_told_the_same_in_less_than_two_seconds() -> None:
    began = time.perf_counter()
    (found,) = conversations(read_file(LINUX))
    deviation = replay(found)
    seconds = time.perf_counter() - began

    assert deviation is None, str(deviation)
    assert seconds < 2
    assert found.counts()["request"] >= 64
    assert sum(1 for step in found.steps if step.told.get("change") == 128 * MIB) == 32
    assert LINUX.stat().st_size < 200_000


@pytest.mark.parametrize("nth", [3, 40])
def test_an_answer_planted_into_what_linux_was_told_is_shrunk(nth: int, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in LINUX.read_text().splitlines()]
    answers = [line for line in lines if line.get("name") == "answer"]
    answers[nth]["answer"] = "ERROR"
    path = tmp_path / "planted.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    found = heard(path)
    deviation = replay(found)
    assert deviation is not None
    numbers = shrink(found, deviation)

    assert (deviation.recorded, deviation.model) == ("ERROR", "ACK")
    assert sum(found.steps[number].kind == "request" for number in numbers) <= 2
    assert len(numbers) <= 3
