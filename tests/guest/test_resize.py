"""The main job: memory grows and shrinks, and both sides and the host agree about it."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import takewhile

import pytest
from harness import Guest, minivmm

from minivmm.report.resizes import find_requests, find_resizes
from minivmm.report.story import story_of
from minivmm.spec.platform import SERIAL_PORT
from minivmm.trace import Detail
from minivmm.tracing.reader import follow
from minivmm.tracing.wish import Wish

MIB = 1 << 20
GIB = 1 << 30
ORDERS = ("resize", "config")
"""How a trace calls what the host does about sizes."""


def test_grow_and_shrink_move_the_guests_total_exactly(guest: Guest) -> None:
    base = guest.memory_total()

    for size in (GIB, 256 * MIB, 512 * MIB, 0):
        guest.resize(size)

        guest.wait_until(lambda: guest.memory_total() - base == size, f"MemTotal for {size:#x}")  # noqa: B023
        assert guest.device()["requested-size"] == size


def test_memory_is_online_and_movable(guest: Guest) -> None:
    guest.resize(256 * MIB)

    zones = guest.shell(
        "for b in /sys/devices/system/memory/memory*; do [ ${b##*/memory} -ge 32 ] &&"
        " cat $b/state $b/valid_zones; done"
    ).split()

    assert zones.count("online") == 2
    assert set(zones) == {"online", "Movable"}
    guest.resize(0)


def test_host_holds_nothing_once_shrunk_to_zero(guest: Guest) -> None:
    guest.resize(512 * MIB)
    guest.shell(
        "mount -t tmpfs -o size=400m none /mnt && dd if=/dev/zero of=/mnt/x bs=1M count=300"
    )
    used = guest.device()["resident"]
    guest.shell("umount /mnt")

    guest.resize(0)

    assert used > 100 * MIB
    assert guest.device()["resident"] == 0


@pytest.mark.rule("MEM-D-18", "MEM-D-19")
def test_content_of_plugged_memory_survives_resizing(guest: Guest) -> None:
    guest.resize(512 * MIB)
    guest.shell(
        "mount -t tmpfs -o size=200m none /mnt && dd if=/dev/urandom of=/mnt/x bs=1M count=100"
    )
    before = guest.shell("md5sum < /mnt/x")

    guest.resize(256 * MIB)
    guest.resize(GIB)

    assert guest.shell("md5sum < /mnt/x") == before
    guest.shell("umount /mnt")
    guest.resize(0)


def test_resize_verb_waits_and_reports(guest: Guest) -> None:
    grown = minivmm("resize", guest.name, "128M", "--wait=60")
    info = json.loads(minivmm("info", guest.name, "--json").stdout)
    odd = minivmm("resize", guest.name, "3M")

    assert grown.returncode == 0, grown.stderr
    assert info["memory-devices"][0]["size"] == 128 * MIB
    assert odd.returncode in (1, 2)
    assert "2M" in odd.stderr and "4M" in odd.stderr
    guest.resize(0)


def test_a_trace_of_growing_tells_every_request_with_its_answer(guest: Guest) -> None:
    guest.resize(0)
    recording = follow(guest.directory.trace_socket, Wish((Detail.REQUESTS, Detail.EXITS)))

    guest.resize(GIB)
    guest.shell("echo > /dev/ttyS0")

    events = list(takewhile(lambda event: event.get("port") != SERIAL_PORT, recording.events))
    lives = defaultdict(list)
    for event in events:
        if event["source"] == "vmem0" and "id" in event:
            lives[event["id"]].append(event)
    whole = ("chain", "request", "show", "answer", "used")
    for number, life in lives.items():
        names = [event["name"] for event in life]
        (chain,) = (event for event in life if event["name"] == "chain")
        # A request that comes while the device is at work needs no doorbell of its own.
        assert ("kick" in names) == (chain["kick"] == number)
        # A driver that looks at the right moment wants no interrupt.
        assert [name for name in names if name not in ("kick", "interrupt")] == list(whole)
        assert names[0] in ("kick", "chain")
        assert names[-1] in ("used", "interrupt")
    told = {event["name"] for life in lives.values() for event in life}
    assert told == {"kick", *whole, "interrupt"}
    answers = [event for event in events if event["name"] == "answer"]
    assert {(event["type"], event["answer"]) for event in answers} == {("PLUG", "ACK")}
    assert sum(event["size"] for event in answers) == GIB == guest.plugged()["vmem0"]
    assert answers[-1]["state"]["plugged-size"] == GIB
    assert len({event["gpa"] for event in answers}) == len(answers) == len(lives)
    assert [event["name"] for event in events if event["name"] in ORDERS] == ["resize", "config"]
    clocks = [event["guest"] - event["t"] for event in events]
    assert max(clocks) - min(clocks) < 0.1
    recording.events.close()  # type: ignore[attr-defined]


def test_a_trace_tells_what_becomes_of_plugged_memory_in_the_guest(guest: Guest) -> None:
    guest.resize(0)
    wish = Wish((Detail.REQUESTS, Detail.MEMORY))
    recording = follow(guest.directory.trace_socket, wish, seconds=60)
    guest.wait_until(lambda: "uevent" in guest.shell("ps"), "the guest's telling")

    guest.resize(256 * MIB)
    guest.shell("dd if=/dev/zero of=/tmp/used bs=1M count=32 2>&1; rm /tmp/used")

    told: Counter[str] = Counter()
    events = []
    for event in recording.events:
        events.append(event)
        if event["name"] == "memory":
            told[event["what"]] += event["size"]
        if told["online"] == 256 * MIB and told["touched"] >= 16 * MIB:
            break
    recording.events.close()  # type: ignore[attr-defined]
    story = story_of(recording.header, events, "vm")
    (resize,) = find_resizes(story, story.devices[0], find_requests(story, "vmem0"))

    assert told["added"] == told["online"] == 256 * MIB
    assert told["touched"] <= 256 * MIB
    assert (resize.before, resize.after, resize.outcome) == (0, 256 * MIB, "done")
    assert resize.memory["online"][1] == 256 * MIB
    assert 0 < resize.device_share < resize.driver < resize.seconds
    guest.wait_until(lambda: "uevent" not in guest.shell("ps"), "the end of its telling")


def test_every_answer_was_an_acknowledgement(guest: Guest) -> None:
    tree = guest.qmp.execute("x-minivmm-inspect")

    answers = tree["board"]["devices"]["vmem0"]["model"]["answers"]
    assert answers["PLUG"]["ACK"] > 0
    assert all(set(kinds) == {"ACK"} for kinds in answers.values())
