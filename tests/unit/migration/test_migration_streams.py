"""Streams that are cut, damaged or hostile: one line, no partial machine, the source runs on."""

from __future__ import annotations

import json
import random
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from streams import PREAMBLE, Relay, bounds, feed, join, split

from minivmm.errors import MigrationError
from minivmm.migration import wire
from minivmm.migration.wire import Frame, FrameHeader, Kind, Preamble, Run, build_pages
from minivmm.saved import Section
from minivmm.units import GIB, MIB

Frames = list[Frame]
BASE = 4 * GIB
"""Where vmem0's region is in these machines; a test checks it."""
BLOCK = 2 * MIB


@pytest.fixture
def streams(source: Any, target: Any, uri: str, wait: Any) -> dict[str, bytes]:
    """What both sides said in a migration that went well; the source then runs on."""
    relay = Relay(uri.removeprefix("unix:") + "r", target.expect(uri).removeprefix("unix:"))
    source.go(uri + "r")
    wait(lambda: source.migration.progress.over and target.ends)
    relay.close()
    assert target.ends == [None]
    source.world.call(source.machine.resume)
    return {way: bytes(data) for way, data in relay.passed.items()}


@pytest.fixture
def frames(streams: dict[str, bytes]) -> Frames:
    found = split(streams["to target"])
    assert [frame.kind for frame in found[:3]] == [Kind.DESCRIPTION, Kind.SECTION, Kind.PLUGGED]
    assert [frame.kind for frame in found[-2:]] == [Kind.END, Kind.RUN]
    return found


class Fresh:
    """A new empty machine for every attempt."""

    def __init__(self, world: Any) -> None:
        self._world = world

    def feed(self, stream: bytes) -> tuple[MigrationError | None, Frames]:
        """The error, after looking at what must hold then; and the answers."""
        party = self._world.party(empty=True)
        party.started = []
        error, answered = feed(party, stream)
        assert (error is None) == bool(party.started)
        if error is not None:
            assert "\n" not in str(error)
            assert "bug" not in str(error)
            assert party.machine.state == "prelaunch"
        self._world.drop(party)
        return error, split(answered) if answered else []


@pytest.fixture
def fresh(world: Any) -> Fresh:
    return Fresh(world)


def test_the_stream_of_a_source_may_be_replayed(
    streams: dict[str, bytes], frames: Frames, fresh: Fresh
) -> None:
    """Else the tests here would show nothing."""
    assert join(frames) == streams["to target"]
    error, answers = fresh.feed(streams["to target"])

    assert error is None
    assert [one.kind for one in answers] == [Kind.READY, Kind.READY, Kind.LOADED, Kind.RUNNING]


def test_every_flipped_byte_of_a_frame_is_noticed(streams: dict[str, bytes]) -> None:
    stream = streams["to target"]
    for number, (start, end) in enumerate(bounds(stream)):
        step = 1 if end - start < 4096 else 61
        for at in [*range(start, start + FrameHeader.SIZE), *range(start, end, step)]:
            frame = bytearray(stream[start:end])
            frame[at - start] ^= 1 << at % 8
            data = bytes(frame[: FrameHeader.SIZE])
            with pytest.raises(MigrationError):
                header = wire.read_header(data, number)
                # What is read then may be more or less than there was.
                payload = bytes(frame[FrameHeader.SIZE :]).ljust(header.length, b"\0")
                wire.decode(header, data, payload[: header.length])


def test_flipped_bits_make_no_machine(streams: dict[str, bytes], fresh: Fresh) -> None:
    stream = streams["to target"]
    chosen = random.Random(7)
    places = [*range(0, 24, 5), *(start + 4 for start, _ in bounds(stream)[::3])]
    places += [chosen.randrange(len(stream)) for _ in range(20)]
    for at in places:
        damaged = bytearray(stream)
        damaged[at] ^= 1 << chosen.randrange(8)

        error, answers = fresh.feed(bytes(damaged))

        assert error is not None, f"a flipped bit in byte {at}"
        if answers:
            assert answers[-1].kind is Kind.FAILED


def test_cut_streams_make_no_machine(streams: dict[str, bytes], fresh: Fresh) -> None:
    stream = streams["to target"]
    last = bounds(stream)[-1][0]
    chosen = random.Random(8)
    places = [0, 1, 23, 24, 40, last - 1, last, last + 1, len(stream) - 1]
    for at in places + [chosen.randrange(len(stream)) for _ in range(20)]:
        error, _ = fresh.feed(stream[:at])

        assert error is not None, f"only {at} bytes came"


def cuts(stream: bytes) -> list[int]:
    """Places at which a side could be killed: around the frames, and in them."""
    found = {0, 10, Preamble.SIZE}
    for start, end in bounds(stream):
        found |= {start + 1, (start + end) // 2, end}
    return sorted(found)


def has_run(stream: bytes | bytearray) -> bool:
    """Did RUN get through as a whole?"""
    if len(stream) < Preamble.SIZE + FrameHeader.SIZE:
        return False
    last = bytes(stream[-FrameHeader.SIZE :])
    return FrameHeader.parse(last).kind == Kind.RUN and FrameHeader.parse(last).length == 0


def test_a_link_that_breaks_leaves_the_source_running(
    world: Any, source: Any, streams: dict[str, bytes], tmp_path: Path, wait: Any
) -> None:
    """A target, or the link, dies after so many bytes in one direction."""
    stream, answers = streams["to target"], streams["to source"]
    before = source.memory()[1:]
    some = cuts(stream)
    tried = [("to_target", at) for at in [*some[:6], *some[6:-6:4], *some[-6:]]]
    tried += [("to_source", at) for at in cuts(answers)]
    for number, (way, at) in enumerate(tried):
        target = world.party(empty=True)
        target.expect(f"unix:{tmp_path}/t{number}")
        relay = Relay(f"{tmp_path}/r{number}", f"{tmp_path}/t{number}", **{way: at})
        source.go(f"unix:{tmp_path}/r{number}")
        wait(lambda: source.migration.progress.over and target.ends)  # noqa: B023
        relay.close()

        progress = source.migration.progress
        said = f"{way} {at}: {progress}, {target.ends}"
        handed_over = has_run(relay.passed["to target"])
        assert "\n" not in progress.error
        assert (target.ends == [None]) == handed_over, said
        assert (target.machine.state == "running") == handed_over, said
        if source.machine.state == "running":
            assert progress.status == "failed" and not handed_over, said
        else:
            assert source.machine.state == "postmigrate", said
            heard = progress.status == "completed"
            assert handed_over if heard else "look whether it runs there" in progress.error, said
            source.world.call(source.machine.resume)
        assert source.runs()
        assert not source.device.migrating
        world.drop(target)
    assert source.memory()[1:] == before


# -- streams that are whole, and lie -------------------------------------------------------------


def changed(kind: Kind, payload: bytes, which: int = 0) -> Callable[[Frames], Frames]:
    """The `which`th frame of `kind` carries `payload`."""

    def change(frames: Frames) -> Frames:
        found = list(frames)
        at = [number for number, frame in enumerate(found) if frame.kind is kind][which]
        found[at] = Frame(kind, payload)
        return found

    return change


def pages(*runs: Run) -> Callable[[Frames], Frames]:
    return changed(Kind.PAGES, build_pages(runs))


def without(kind: Kind, which: int) -> Callable[[Frames], Frames]:
    def change(frames: Frames) -> Frames:
        found = list(frames)
        at = [number for number, frame in enumerate(found) if frame.kind is kind][which]
        del found[at]
        return found

    return change


def doubled(kind: Kind, which: int) -> Callable[[Frames], Frames]:
    def change(frames: Frames) -> Frames:
        at = [number for number, frame in enumerate(frames) if frame.kind is kind][which]
        return [*frames[: at + 1], *frames[at:]]

    return change


def section(change: Callable[[Section], Section], which: int) -> Callable[[Frames], Frames]:
    def apply(frames: Frames) -> Frames:
        found = [frame for frame in frames if frame.kind is Kind.SECTION][which]
        payload = wire.build_section(change(wire.parse_section(found.payload)))
        return changed(Kind.SECTION, payload, which)(frames)

    return apply


PAGE = bytes(range(256)) * 16

LIES: dict[str, tuple[Callable[[Frames], Frames], str]] = {
    "pages beyond memory": (pages(Run(1 << 46, 4096, PAGE)), "outside of memory"),
    "zeroes beyond memory": (pages(Run(1 << 46, 4096, None)), "outside of memory"),
    "pages that wrap around": (pages(Run((1 << 64) - 4096, 8192, None)), "outside of memory"),
    "pages in the hole": (pages(Run(3 * GIB, 4096, PAGE)), "outside of memory"),
    "pages of an unplugged block": (pages(Run(BASE, 4096, PAGE)), "outside of memory"),
    "zeroes of an unplugged block": (pages(Run(BASE, 4096, None)), "outside of memory"),
    "zeroes over all blocks": (pages(Run(BASE, GIB, None)), "outside of memory"),
    "zeroes one page too many": (
        pages(Run(BASE + 3 * BLOCK, 20 * BLOCK + 4096, None)),
        "outside of memory",
    ),
    "pages behind the end of memory": (pages(Run(64 * MIB - 4096, 8192, PAGE * 2)), "outside"),
    "an address that is not aligned": (pages(Run(5, 4096, PAGE)), "no run is"),
    "no page at all": (pages(Run(0, 0, None)), "no run is"),
    "more runs than are there": (changed(Kind.PAGES, b"\xff\0\0\0"), "255 runs"),
    "runs without number": (changed(Kind.PAGES, b"\xff"), "bytes and"),
    "data that is cut short": (
        changed(Kind.PAGES, build_pages([Run(0, 4096, PAGE)])[:-1]),
        "cut short",
    ),
    "bytes behind the data": (
        changed(Kind.PAGES, build_pages([Run(0, 4096, PAGE)]) + b"x"),
        "behind the last page",
    ),
    "neither data nor zeroes": (
        changed(Kind.PAGES, b"\1\0\0\0" + bytes(8) + b"\1\0\0\0\2\0\0\0"),
        "no run is",
    ),
    "a description that is no JSON": (changed(Kind.DESCRIPTION, b"{"), "not JSON"),
    "a description that is a list": (changed(Kind.DESCRIPTION, b"[]"), "no JSON object"),
    "a description of nothing": (changed(Kind.DESCRIPTION, b"{}"), "the machines differ"),
    "a description without an end": (changed(Kind.DESCRIPTION, b"[" * 100_000), "not JSON"),
    "a description with surprises": (
        changed(Kind.DESCRIPTION, json.dumps({"cpus": "\x1b[2J\n", "devices": [1]}).encode()),
        "the machines differ",
    ),
    "no device": (without(Kind.SECTION, 0), "missing"),
    "a device twice": (doubled(Kind.SECTION, 0), "twice"),
    "other sizes than it says": (changed(Kind.PLUGGED, b'{"plugged":{"vmem0":0}}'), "it is {"),
    "no sizes": (changed(Kind.PLUGGED, b"{}"), "plugged"),
    "a part that is missing": (without(Kind.SECTION, 4), "sections came"),
    "another number of parts": (
        changed(Kind.END, b'{"sections":3,"plugged":{"vmem0":44040192}}'),
        "sections came, not 3",
    ),
    "a part of another version": (section(lambda s: Section(s.name, 77, s.data), 3), "version"),
    "a part that nobody has": (section(lambda s: Section("bogus", 1, s.data), 3), "missing"),
    "a part that is cut": (section(lambda s: Section(s.name, 1, s.data[:-1]), 3), "saved state"),
    "a device that is cut": (section(lambda s: Section(s.name, 1, s.data[:-1]), 0), "saved state"),
    "a name that is no text": (changed(Kind.SECTION, b"\2\xff\xff\1\0\0\0", 2), "without name"),
    "a name with a line in it": (
        section(lambda s: Section("a\nb\x1b[2J", 1, s.data), 0),
        "a section is named 'a\\nb",
    ),
    "sizes that are a text": (changed(Kind.PLUGGED, b'{"plugged":"a\\nb"}'), "'a\\nb'"),
    "a number that is a text": (changed(Kind.END, b'{"sections":"a\\nb"}'), "not 'a\\nb'"),
    "a name that is cut": (changed(Kind.SECTION, b"\xff", 2), "without name"),
    "RUN too early": (lambda frames: [frames[0], frames[-1]], "RUN where PLUGGED"),
    "pages too early": (lambda f: [f[0], Frame(Kind.PAGES, build_pages([]))], "PAGES where"),
    "a target's word": (lambda frames: [Frame(Kind.LOADED, b"")], "LOADED where DESCRIPTION"),
    "it says why it goes": (
        lambda frames: [frames[0], Frame(Kind.FAILED, b"disk\nfull \xff\x1b[2J")],
        "the source says: disk full",
    ),
    "no RUN": (lambda frames: frames[:-1], "it hung up"),
    "something else than RUN": (
        lambda frames: [*frames[:-1], Frame(Kind.END, b"{}")],
        "END where RUN",
    ),
}


def test_lies_are_found_out(source: Any, frames: Frames, fresh: Fresh) -> None:
    assert source.device.window.base == BASE
    for name, (lie, said) in LIES.items():
        error, answers = fresh.feed(join(lie(frames)))

        assert error is not None, name
        assert said in str(error), f"{name}: {error}"
        assert answers == [] or answers[-1].kind is Kind.FAILED, name
        assert str(error).isprintable(), name


def test_a_bomb_does_not_inflate(frames: Frames, fresh: Fresh) -> None:
    bomb = zlib.compress(bytes(100 * MIB), 9)
    stream = join(frames[:3]) + wire_frame(Kind.PAGES, bomb, 3, flags=wire.DEFLATED)

    error, _ = fresh.feed(stream)

    assert "does not inflate" in str(error)


def wire_frame(kind: Kind, payload: bytes, number: int, *, flags: int) -> bytes:
    """One with flags of our choice."""
    head = FrameHeader(kind, flags, len(payload), number, 0).build()[:12]
    return head + zlib.crc32(payload, zlib.crc32(head)).to_bytes(4, "little") + payload


@pytest.mark.parametrize(
    ("flags", "payload", "said"),
    [(1, b"nonsense", "frame 3"), (1, zlib.compress(b"x") + b"y", "does not inflate"),
     (2, b"", "flags 0x2")],
)  # fmt: skip
def test_flags_mean_what_they_say(
    frames: Frames, fresh: Fresh, flags: int, payload: bytes, said: str
) -> None:
    error, _ = fresh.feed(join(frames[:3]) + wire_frame(Kind.PAGES, payload, 3, flags=flags))

    assert said in str(error)


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "no source of a minivmm migration"),
        (Preamble(role=wire.TARGET).build(), "no source of a minivmm migration"),
        (Preamble(version=2, role=wire.SOURCE).build(), "version 2"),
        (b"", "no source of a migration is there"),
        (PREAMBLE + b"\0" * 16, "kind 0"),
        (PREAMBLE + FrameHeader(Kind.DESCRIPTION, 0, 1 << 31, 0, 0).build(), "2147483648 bytes"),
        (PREAMBLE + FrameHeader(Kind.DESCRIPTION, 0, 1, 1, 0).build(), "frame 1 in place of 0"),
    ],
)
def test_strangers_are_told_apart(fresh: Fresh, stream: bytes, said: str) -> None:
    error, _ = fresh.feed(stream)

    assert said in str(error)
