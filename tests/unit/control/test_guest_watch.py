"""What the guest's Linux does with memory blocks becomes events, as far as it makes sense."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from minivmm.control.agent import GuestAgent
from minivmm.control.guest_watch import GuestWatch
from minivmm.devices.virtio_console.device import CONTROL_PORT, VirtioConsole
from minivmm.testing.console_guest import PAGE, ConsoleGuest
from minivmm.testing.mem_bench import make_device
from minivmm.trace import Detail, Event, Trace
from minivmm.units import GIB, MIB

SECTION = 128 * MIB
FIRST = 4 * GIB // SECTION
"""Number of the first memory block of the device, which is at 4 GiB."""


class Rig:
    """A guest whose agent is played by hand, and a trace that may be followed."""

    def __init__(self) -> None:
        console = VirtioConsole()
        self.lock = threading.RLock()
        self.guest = ConsoleGuest(console, self.lock)
        self.trace = Trace()
        self.agent = GuestAgent(console, self.trace)
        device = make_device(size=GIB)
        self.watch = GuestWatch(self.agent, self.trace, {"vmem0": device})
        self.seen: list[Event] = []

    def boot(self) -> None:
        self.guest.probe()
        self.guest.open(CONTROL_PORT)
        self.say(b"ready 6.12.0\n")

    def follow(self) -> None:
        self.stop = self.trace.follow(self.seen.append, Detail.MEMORY)

    def say(self, data: bytes, port: int = CONTROL_PORT) -> None:
        self.guest.write(port, data)

    def heard(self) -> list[str]:
        """What the agent was told, in words; nothing if it was told nothing."""
        if not self.guest.ports[CONTROL_PORT].unread:
            return []
        return self.guest.read(CONTROL_PORT, 8 * PAGE).decode().split()

    def start(self) -> int:
        """The script runs; the port of its output."""
        verb, number, in_, out, *_ = self.heard()
        assert (verb, in_) == ("exec", "-")
        self.session = number
        port = int(out)
        self.guest.open(port)
        return port

    def told(self) -> list[tuple[object, ...]]:
        return [
            (event.source, *event.fields.values()) for event in self.seen if event.name == "memory"
        ]


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    with rig.lock:
        yield rig


def test_blocks_of_the_device_are_told(rig: Rig) -> None:
    rig.boot()
    rig.follow()
    port = rig.start()

    rig.say(b"block 8000000\n", port)
    rig.say(f"add {FIRST}\nonl".encode(), port)
    rig.say(f"ine {FIRST}\n".encode(), port)
    rig.say(f"offline {FIRST + 1}\nremove {FIRST + 1}\n".encode(), port)

    assert rig.told() == [
        ("vmem0", "added", 4 * GIB, SECTION),
        ("vmem0", "online", 4 * GIB, SECTION),
        ("vmem0", "offline", 4 * GIB + SECTION, SECTION),
        ("vmem0", "removed", 4 * GIB + SECTION, SECTION),
    ]


@pytest.mark.parametrize(
    "line",
    [
        b"add 1",  # boot memory
        b"add 99999999999999999999",
        b"add -1",
        b"add x",
        b"explode 32",
        b"block zz",
        b"block 1",  # a second size
        b"add",
        b"\xff\xfe",
        b"x" * 100_000,
    ],
)
def test_nonsense_is_left_out(rig: Rig, line: bytes) -> None:
    rig.boot()
    rig.follow()
    port = rig.start()
    rig.say(b"block 8000000\n", port)

    for at in range(0, len(line), PAGE):
        rig.say(line[at : at + PAGE], port)
    rig.say(b"\n", port)

    assert rig.told() == []
    rig.say(f"add {FIRST}\n".encode(), port)
    assert len(rig.told()) == 1


def test_nothing_runs_in_the_guest_unless_somebody_follows(rig: Rig) -> None:
    rig.boot()

    assert rig.heard() == []


def test_follower_that_comes_before_the_guest_is_ready_waits_for_it(rig: Rig) -> None:
    rig.follow()
    rig.boot()

    assert rig.start()


def test_script_ends_with_the_last_follower_and_starts_with_the_next(rig: Rig) -> None:
    rig.boot()
    rig.follow()
    rig.start()

    rig.stop()
    assert rig.heard() == ["kill", rig.session, "15"]
    rig.follow()
    assert rig.heard() == []  # the first is not gone yet
    rig.say(f"exit {rig.session} 143\n".encode())

    assert rig.heard()[0] == "exec"


def test_guest_that_cannot_tell_is_not_asked_again(rig: Rig) -> None:
    rig.boot()
    rig.follow()
    rig.start()

    rig.say(f"exit {rig.session} 127\n".encode())

    assert rig.heard() == []


def test_follower_that_outlives_the_machine_changes_nothing_in_the_guest(rig: Rig) -> None:
    rig.boot()
    rig.follow()
    rig.start()

    rig.watch.close()
    rig.stop()

    assert rig.heard() == []
