"""The trace socket: what clients get, what bad ones get, and that none of them holds up the VM."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minivmm.control.trace_server import TraceServer
from minivmm.errors import NoSuchMachine, Refused
from minivmm.loop import EventLoop
from minivmm.testing.traced import Traced
from minivmm.trace import Detail
from minivmm.tracing.feed import CAPACITY
from minivmm.tracing.reader import follow
from minivmm.tracing.wish import Wish


class Served:
    """A traced device behind a trace socket; `plug` is what the guest does."""

    def __init__(self, traced: Traced, path: Path) -> None:
        self.traced = traced
        self.path = path
        self.errors: list[object] = []
        self.loop = EventLoop()
        self.loop.asyncio.set_exception_handler(lambda _, context: self.errors.append(context))
        self.server = TraceServer(traced.scene, self.loop)
        self._thread = threading.Thread(target=self.loop.asyncio.run_forever)
        self._thread.start()
        self.run(self.server.start(path))

    def run(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self.loop.asyncio).result(10)

    def locked(self, act: Callable[[], object]) -> None:
        with self.loop.lock:
            act()

    def connect(self, line: bytes = b"") -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(str(self.path))  # it waits for room in the listener's queue
        client.settimeout(10)
        client.sendall(line)
        return client

    @property
    def followed(self) -> bool:
        return self.traced.function.transport._tap is not None

    def close(self) -> None:
        self.run(self.server.close())
        self.loop.asyncio.call_soon_threadsafe(self.loop.asyncio.stop)
        self._thread.join(10)
        self.loop.asyncio.close()
        assert self.errors == []


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Traced() as traced:
        made = Served(traced, tmp_path / "trace.sock")
        yield made
        made.close()
        assert not made.followed
        assert not made.path.exists()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.002)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def read_line(client: socket.socket) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(client.makefile("rb").readline())
    return found


def test_a_client_gets_header_and_events(served: Served) -> None:
    recording = follow(served.path, Wish(patterns=(":answer",)))

    served.locked(lambda: served.traced.plug(0))

    assert recording.header["name"] == "work"
    assert recording.header["filter"] == [":answer"]
    event = next(recording.events)
    assert (event["name"], event["answer"]) == ("answer", "ACK")
    recording.events.close()  # type: ignore[attr-defined]
    wait_for(lambda: not served.followed)


def test_nobody_is_followed_until_a_wish_came_nor_after_the_client_left(served: Served) -> None:
    client = served.connect()
    time.sleep(0.05)
    assert not served.followed

    client.sendall(b"{}\n")
    read_line(client)
    assert served.followed

    client.close()
    wait_for(lambda: not served.followed)


def test_without_details_the_machine_is_left_as_it_is(served: Served) -> None:
    recording = follow(served.path, Wish(details=()))

    assert not served.followed
    served.locked(lambda: served.traced.plug(0))
    assert next(recording.events)["name"] == "answer"
    recording.events.close()  # type: ignore[attr-defined]


def test_clients_get_what_each_of_them_wants(served: Served) -> None:
    one = follow(served.path, Wish(patterns=(":kick",)))
    other = follow(served.path, Wish((Detail.EXITS,)))

    served.locked(lambda: served.traced.plug(0))
    served.locked(
        lambda: served.traced.trace.tell(Detail.EXITS, "vcpu0", "exit", {"kind": "shutdown"})
    )

    assert next(one.events)["name"] == "kick"
    assert [next(other.events)["name"] for _ in range(2)] == ["answer", "exit"]
    for recording in (one, other):
        recording.events.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"garbage\n", "not JSON"),
        (b"\n", "not JSON"),
        (b'{"details": ["everything"]}\n', "unknown detail"),
        (b"[" * 50_000 + b"\n", "not JSON"),
        (b"x" * (1 << 20), "too long"),
        (b"\xff\xfe\x00\n", "not JSON"),
    ],
)
def test_bad_wishes_get_an_error_and_the_end(served: Served, line: bytes, complaint: str) -> None:
    client = served.connect()
    with contextlib.suppress(ConnectionError):  # it may have had enough before the end
        client.sendall(line)
    try:
        answer = client.makefile("rb").readlines()
    except ConnectionError:
        answer = []

    if answer:  # a client that is still sending may lose it
        assert complaint in json.loads(answer[0])["error"]["desc"]
    else:
        assert len(line) > 1 << 16
    client.close()


def test_a_refusal_reaches_our_client_as_one(served: Served, monkeypatch: Any) -> None:
    monkeypatch.setattr(Wish, "to_json", lambda _: {"filter": "vmem0"})

    with pytest.raises(Refused, match="filter must be a list"):
        follow(served.path, Wish())


def test_where_nobody_listens_there_is_no_machine(tmp_path: Path) -> None:
    with pytest.raises(NoSuchMachine):
        follow(tmp_path / "trace.sock", Wish())


def test_following_ends_after_its_time(served: Served) -> None:
    began = time.monotonic()
    recording = follow(served.path, Wish(), seconds=0.2)

    assert list(recording.events) == []
    assert 0.1 < time.monotonic() - began < 5


def test_the_last_events_leave_before_the_server_does(tmp_path: Path) -> None:
    with Traced() as traced:
        served = Served(traced, tmp_path / "trace.sock")
        recording = follow(served.path, Wish(patterns=("machine",)))
        served.locked(lambda: traced.trace.emit("machine", "end", outcome="shutdown"))
        served.close()

        assert [event["name"] for event in recording.events] == ["end"]


def test_a_client_that_does_not_read_misses_events_and_holds_up_nobody(served: Served) -> None:
    slow = served.connect(b'{"filter": ["machine"]}\n')
    wait_for(lambda: served.followed)
    text = "x" * 1000

    def many() -> None:
        for number in range(CAPACITY * 2):
            served.traced.trace.emit("machine", "tick", number=number, text=text)

    began = time.monotonic()
    for _ in range(3):
        served.locked(many)
    spent = time.monotonic() - began
    served.locked(lambda: served.traced.trace.emit("machine", "last"))

    counted = lost = 0
    for line in slow.makefile("rb"):
        event = json.loads(line)
        counted += event.get("name") == "tick"
        lost += event.get("count", 0) if event.get("name") == "dropped" else 0
        if event.get("name") == "last" or counted + lost >= CAPACITY * 6 + 1:
            break
    slow.close()
    assert spent < 5
    assert lost > 0
    assert CAPACITY * 6 <= counted + lost <= CAPACITY * 6 + 1


def test_a_client_that_leaves_while_it_is_behind_leaves_nothing(served: Served) -> None:
    client = served.connect(b"{}\n")
    wait_for(lambda: served.followed)
    text = "x" * 4000

    def many() -> None:
        for _ in range(CAPACITY):
            served.traced.trace.emit("machine", "tick", text=text)

    served.locked(many)
    time.sleep(0.1)
    client.close()

    wait_for(lambda: not served.followed)


def test_random_clients_leave_the_server_at_work(served: Served) -> None:
    rng = random.Random(5)
    good = b'{"details": ["requests"], "filter": ["vmem0"]}\n'
    before = open_files()
    for _ in range(1000):
        kind = rng.randrange(3)
        data = bytes(rng.randrange(256) for _ in range(rng.randrange(40)))
        if kind:
            at = rng.randrange(len(good) + 1)
            data = good[:at] if kind == 1 else good[:at] + data + good[at:]
        client = served.connect()
        with contextlib.suppress(ConnectionError):
            client.sendall(data)
        client.close()

    client = served.connect(b"{}\n")
    assert read_line(client)["name"] == "work"
    client.close()
    wait_for(lambda: not served.server._clients)
    wait_for(lambda: open_files() <= before)
