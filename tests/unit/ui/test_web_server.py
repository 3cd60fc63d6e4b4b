"""The web view on the wire: what is served, what is refused, and that bad clients harm nobody."""

from __future__ import annotations

import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from minivmm.errors import HostError
from minivmm.runtime import MachineDir
from minivmm.testing.fake_machine import FakeMachine
from minivmm.ui import server
from minivmm.ui.actions import Actions
from minivmm.ui.feed import Feed
from minivmm.ui.guard import Listen
from minivmm.ui.server import WebView
from minivmm.units import GIB, MIB


class Caller:
    """An HTTP client that holds the token."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.root = parts.path
        self.address = (parts.hostname or "", parts.port or 0)

    def ask(
        self,
        path: str,
        body: object = None,
        *,
        method: str | None = None,
        root: str | None = None,
        **headers: str,
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content. A body makes it a POST of JSON."""
        given = {key.replace("_", "-"): value for key, value in headers.items()}
        data = None
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            given.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection(*self.address, timeout=10)
        try:
            where = (self.root if root is None else root) + path
            connection.request(method or ("GET" if data is None else "POST"), where, data, given)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def post(self, path: str, **arguments: object) -> tuple[int, Any]:
        status, _, content = self.ask(path, arguments)
        return status, json.loads(content)

    def stream(self) -> Stream:
        return Stream(self)


class Stream:
    """The server-sent events."""

    def __init__(self, caller: Caller) -> None:
        self.connection = http.client.HTTPConnection(*caller.address, timeout=10)
        self.connection.request("GET", caller.root + "events")
        self.answer = self.connection.getresponse()
        assert self.answer.headers["Content-Type"] == "text/event-stream"

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        name = ""
        while line := self.answer.readline().decode():
            key, _, value = line.rstrip("\n").partition(": ")
            if key == "event":
                name = value
            elif key == "data":
                yield name, json.loads(value)

    def next(self, wanted: str) -> Any:
        """The data of the next event called `wanted`."""
        return next(data for name, data in self if name == wanted)

    def close(self) -> None:
        self.answer.close()
        self.connection.close()


@pytest.fixture
def caller(web: WebView) -> Caller:
    return Caller(web.url)


@pytest.fixture
def stream(caller: Caller) -> Iterator[Stream]:
    stream = caller.stream()
    yield stream
    stream.close()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("", "text/html"),
        ("app.js", "text/javascript"),
        ("draw.js", "text/javascript"),
        ("style.css", "text/css"),
    ],
)
def test_the_page_and_its_files(caller: Caller, path: str, kind: str) -> None:
    status, headers, content = caller.ask(path)

    assert status == 200
    assert headers["Content-Type"].startswith(kind)
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    assert b"http://" not in content and b"https://" not in content, "nothing from elsewhere"


@pytest.mark.parametrize("path", ["", "events", "resize"])
def test_a_wrong_token_is_forbidden(caller: Caller, path: str, machine: FakeMachine) -> None:
    body = {"size": "64M"} if path == "resize" else None

    for root in ("/", "/wrong/", "/token-of-the-tesT/", "//", "/%00/", "/tok", "/?token-of"):
        status, _, content = caller.ask(path, body, root=root)

        assert status == 403
        assert b"token" in content and b"token-of-the-test" not in content
    assert machine.memory_devices["vmem0"].requested_size == 0


def test_a_name_that_is_not_ours_is_forbidden(caller: Caller, machine: FakeMachine) -> None:
    for path, body in (("", None), ("events", None), ("resize", {"size": "64M"})):
        assert caller.ask(path, body, Host="evil.example")[0] == 403
        assert caller.ask(path, body, Origin="http://evil.example")[0] == 403

    assert machine.memory_devices["vmem0"].requested_size == 0


def test_a_form_of_another_site_cannot_post(caller: Caller, machine: FakeMachine) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert caller.ask("resize", {"size": "64M"}, Content_Type=kind)[0] == 400

    assert machine.memory_devices["vmem0"].requested_size == 0


def test_unknown_paths_and_methods(caller: Caller) -> None:
    assert caller.ask("nothing")[0] == 404
    assert caller.ask("../server.py")[0] == 404
    assert caller.ask("page/index.html")[0] == 404
    assert caller.ask("nothing", {})[0] == 404
    assert caller.ask("resize")[0] == 404, "only by POST"
    assert caller.ask("", {}, method="PUT")[0] == 501


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "JSON object"),
        (b"[]", "JSON object"),
        (b"[" * 4000, "JSON object"),
        (b'{"size":"1G"}' + b" " * 4096, "at most 4096"),
        (b"{}", "size is missing"),
        (b'{"size":1}', "size must be a text"),
        (b'{"size":"1G","id":["vmem0"]}', "id must be a text"),
        (b'{"size":"3M"}', "not a multiple of block-size"),
        (b'{"size":"2G"}', "outside the region"),
        (b'{"size":"lots"}', "not understood"),
        (b'{"size":"1G","id":"nope"}', "no memory device 'nope'"),
    ],
)
def test_bad_sizes_are_explained(caller: Caller, body: bytes, words: str) -> None:
    status, _, content = caller.ask("resize", body)

    assert status == 400
    assert words in json.loads(content)["error"]


def test_the_stream_tells_what_was_and_what_is(
    caller: Caller, feed: Feed, machine: FakeMachine
) -> None:
    caller.post("resize", id="vmem0", size="128M")
    while (state := feed.wait(0, 5)) is None or not state.view["memory-devices"][0]["size"]:
        time.sleep(0.02)
    stream = caller.stream()

    hello = stream.next("hello")
    shown = stream.next("view")
    lines = stream.next("log")
    stream.close()

    assert hello["name"] == "vm1"
    assert hello["history"][-1]["sizes"]["vmem0"] == [128 * MIB, 128 * MIB, 0]
    (device,) = shown["memory-devices"]
    assert device["size"] == 128 * MIB
    assert device["rates"]["requests"] >= 0
    assert len(device["residency"]["held"]) == device["map"]["cells"] == 256
    assert [(line["source"], line["name"]) for line in lines[-2:]] == [
        ("vmem0", "resize"),
        ("vmem0", "answer"),
    ]
    assert lines[-1]["text"] == "PLUG 64 blocks at 0x100000000 (128M): ACK; plugged 128M"


def test_actions_reach_the_machine(caller: Caller, machine: FakeMachine, stream: Stream) -> None:
    device = machine.memory_devices["vmem0"]

    assert caller.post("resize", size="+256M") == (200, {"return": "vmem0: 256M requested"})
    assert device.plugged_size == 256 * MIB
    assert caller.post("pause") == (200, {"return": "paused"})
    assert machine.state == "paused"
    assert caller.post("resume") == (200, {"return": "running"})
    assert machine.state == "running"
    status, kicked = caller.post("kick", id="vmem0")
    assert (status, kicked["return"]) == (200, "vmem0: configuration interrupt sent")
    status, why = caller.post("why", id="vmem0")
    assert (status, why["return"][0]["kind"]) == (200, "done")
    assert caller.post("why", id="nope")[0] == 409

    while stream.next("view")["memory-devices"][0]["size"] != 256 * MIB:
        pass


def test_every_step_needs_a_trace_socket(caller: Caller) -> None:
    status, told = caller.post("steps", wanted=True)

    assert status == 409
    assert "trace" in told["error"]
    assert caller.post("steps", wanted=False)[0] == 200
    assert caller.post("steps", wanted="yes")[0] == 400


def test_viewers_are_told_that_the_vm_has_ended(
    caller: Caller, stream: Stream, machine: FakeMachine
) -> None:
    stream.next("view")
    with machine.lock:
        machine.request_quit()

    assert stream.next("end") == {"why": "the VM has ended"}
    assert caller.post("resize", size="64M")[0] == 409


def test_a_port_in_use_is_an_error_with_a_remedy(
    web: WebView, feed: Feed, live: MachineDir
) -> None:
    taken = Listen(port=urlsplit(web.url).port or 0)

    with pytest.raises(HostError, match="already in use: choose another with --listen"):
        WebView(feed, Actions(live), taken, "t")


def test_garbage_and_clients_that_leave_harm_nobody(caller: Caller, stream: Stream) -> None:
    chance = random.Random(5)
    whole = f"POST {caller.root}resize HTTP/1.1\r\nHost: localhost\r\n".encode()
    whole += b'Content-Type: application/json\r\nContent-Length: 17\r\n\r\n{"size":"0", 1:2}'
    for number in range(200):
        data = whole[: chance.randrange(len(whole))]
        if number % 2:
            data = bytes(chance.randrange(256) for _ in range(50)) + data
        with socket.create_connection(caller.address, 5) as client:
            client.sendall(data)
            if number % 3 == 0:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    assert caller.ask("")[0] == 200
    stream.next("view")


def test_connections_are_limited_and_come_free_again(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [socket.create_connection(caller.address, 5) for _ in range(server.MOST_CONNECTIONS)]
    time.sleep(0.3)
    with socket.create_connection(caller.address, 5) as late:
        late.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with pytest.raises(ConnectionError):
            assert late.recv(100) == b""
            raise ConnectionError
    for client in held:
        client.close()
    deadline = time.monotonic() + 5
    while True:
        try:
            assert caller.ask("")[0] == 200
            break
        except (ConnectionError, http.client.HTTPException):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_viewer_that_does_not_read_holds_up_nobody(
    caller: Caller, feed: Feed, machine: FakeMachine
) -> None:
    stuck = socket.socket()
    stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stuck.connect(caller.address)
    stuck.sendall(f"GET {caller.root}events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    number = feed.state.number
    for size in range(0, 1024, 64):
        assert caller.post("resize", size=f"{size}M")[0] == 200

    assert (state := feed.wait(number + 20, 10)) is not None and state.ended is None
    assert machine.memory_devices["vmem0"].plugged_size == 960 * MIB < GIB
    stuck.close()


def test_nothing_is_left_behind(feed: Feed, live: MachineDir) -> None:
    before = threading.active_count()
    view = WebView(feed, Actions(live), Listen(), "t")
    Caller(view.url).ask("")
    view.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.02)

    assert threading.active_count() == before
    with pytest.raises(ConnectionError):
        Caller(view.url).ask("")
