"""The web view's HTTP server: a page, its two files, a stream of states, and what buttons do.

    GET  /TOKEN/            the page            GET  /TOKEN/app.js, style.css
    GET  /TOKEN/events      server-sent events: hello, view, log, end
    POST /TOKEN/resize      {"id": "vmem0", "size": "1G"}; likewise kick, pause, resume, why, steps

Python's own http.server carries it, a thread for each connection: viewers are few, all of them hold
the token, and a VM's tool should not need a web framework. Everything else is refused early: wrong
names and tokens with 403, long bodies unread, connections beyond a number unanswered.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

import minivmm.ui
from minivmm.errors import HostError, MinivmmError, UsageError
from minivmm.ui.actions import Actions, text_of
from minivmm.ui.feed import Feed
from minivmm.ui.guard import Guard, Listen

MOST_CONNECTIONS = 64
BODY_MAX = 4096
"""Bytes of a POST."""
IDLE = 30.0
"""Seconds that a client may take to send a request, or to take what it is sent."""
BEAT = 10.0
"""Seconds after which a stream without news gets a comment, which shows whether anybody reads."""

_FILES = {
    "": ("index.html", "text/html; charset=utf-8"),
    "app.js": ("app.js", "text/javascript; charset=utf-8"),
    "draw.js": ("draw.js", "text/javascript; charset=utf-8"),
    "style.css": ("style.css", "text/css; charset=utf-8"),
}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class WebView:
    """Serves `feed` and `actions` from threads until `close`. Raises HostError if it cannot listen.

    `url` is the page's address with the token; who has it may see and steer the VM.
    """

    def __init__(self, feed: Feed, actions: Actions, listen: Listen, token: str) -> None:
        try:
            self._server = _Server(feed, actions, Guard(listen, token), listen)
        except OSError as error:
            raise HostError(
                f"cannot listen on {listen.host} port {listen.port}: {error.strerror or error}:"
                " choose another with --listen ADDR:PORT"
            ) from None
        self.url = listen.url(self._server.server_address[1], token)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="http", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening; streams end as the feed does."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    """`guard` judges what handlers get; `feed` and `actions` are what they serve."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, feed: Feed, actions: Actions, guard: Guard, listen: Listen) -> None:
        self.address_family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
        self.feed = feed
        self.actions = actions
        self.guard = guard
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__((listen.host, listen.port), _Handler)

    def server_bind(self) -> None:
        """Bind without the look into DNS that the standard library does here."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def verify_request(self, request: object, client_address: object) -> bool:
        """Is there a thread left for this connection?"""
        return self._free.acquire(blocking=False)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """One connection, in its own thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that leave in the middle are nothing to report."""


class _Handler(BaseHTTPRequestHandler):
    """One connection, from request to request."""

    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "minivmm"
    sys_version = ""
    timeout = IDLE

    def do_GET(self) -> None:
        """A file of the page, or the stream."""
        path = self._checked()
        if path == "events":
            self._stream()
        elif path in _FILES:
            name, kind = _FILES[path]
            self._answer(HTTPStatus.OK, _file(name), kind)
        elif path is not None:
            self._fail(HTTPStatus.NOT_FOUND, "there is no such page")

    def do_POST(self) -> None:
        """A button, or the slider."""
        path = self._checked()
        if path is None:
            return
        if path not in _ACTIONS:
            self._fail(HTTPStatus.NOT_FOUND, "there is no such action")
            return
        try:
            said = _ACTIONS[path](self.server, self._arguments())
        except UsageError as error:
            self._fail(HTTPStatus.BAD_REQUEST, str(error))
        except MinivmmError as error:
            self._fail(HTTPStatus.CONFLICT, str(error))
        else:
            self._answer_json(HTTPStatus.OK, {"return": said})

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is logged: the token is in every request."""

    # -- requests ----------------------------------------------------------------------------------

    def _checked(self) -> str | None:
        """The path behind the token; None for a request that was refused."""
        why = self.server.guard.refusal(self.headers)  # type: ignore[arg-type]
        if why is not None:
            self._fail(HTTPStatus.FORBIDDEN, why)
            return None
        token, slash, path = self.path.partition("?")[0].removeprefix("/").partition("/")
        if not slash or not self.server.guard.knows(token):
            self._fail(
                HTTPStatus.FORBIDDEN,
                "this address lacks the right token: use the whole URL that minivmm printed",
            )
            return None
        return path

    def _arguments(self) -> Mapping[str, Any]:
        """The JSON object in the body. Raises UsageError."""
        # What a form of another site can send has not this type.
        if self.headers.get_content_type() != "application/json":
            raise UsageError("the body must be application/json")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > BODY_MAX:
            self.close_connection = True
            raise UsageError(f"the body must have a length of at most {BODY_MAX} bytes")
        try:
            found = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise UsageError("the body must be a JSON object")
        return found

    # -- answers -----------------------------------------------------------------------------------

    def _fail(self, status: HTTPStatus, why: str) -> None:
        """`why` as JSON; what the request had beside its head was not read, so nothing follows."""
        self.close_connection = True
        self._answer_json(status, {"error": why})

    def _answer_json(self, status: HTTPStatus, value: object) -> None:
        self._answer(status, json.dumps(value).encode(), "application/json")

    def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self._head(status, kind)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _head(self, status: HTTPStatus, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in _HEADERS.items():
            self.send_header(name, value)

    def _stream(self) -> None:
        """States and events as they come, until the VM ends or nobody reads any more."""
        feed = self.server.feed
        self.close_connection = True
        self._head(HTTPStatus.OK, "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        now = time.monotonic()
        history = [sample.to_json(now) for sample in feed.history()]
        seen = lines = 0
        with contextlib.suppress(OSError):
            self._send("hello", {"name": feed.name, "history": history})
            while True:
                state = feed.wait(seen, BEAT)
                if state is None:
                    self.wfile.write(b":\n\n")
                    continue
                seen = state.number
                if state.ended is not None:
                    self._send("end", {"why": state.ended})
                    return
                self._send("view", {**state.view, "every-step": feed.log.every_step})
                new = feed.log.since(lines)
                if new:
                    lines = new[-1].number
                    self._send("log", [line.to_json() for line in new])

    def _send(self, event: str, value: object) -> None:
        self.wfile.write(f"event: {event}\ndata: {json.dumps(value)}\n\n".encode())


def _file(name: str) -> bytes:
    return (resources.files(minivmm.ui) / "page" / name).read_bytes()


def _resize(server: _Server, arguments: Mapping[str, Any]) -> object:
    size = text_of(arguments, "size")
    if size is None:
        raise UsageError("size is missing")
    return server.actions.resize(text_of(arguments, "id"), size)


def _every_step(server: _Server, arguments: Mapping[str, Any]) -> object:
    wanted = arguments.get("wanted")
    if not isinstance(wanted, bool):
        raise UsageError("wanted must be true or false")
    server.feed.log.want_every_step(wanted)
    return "every step is shown" if wanted else "what is kept is shown"


_ACTIONS = {
    "resize": _resize,
    "kick": lambda server, arguments: server.actions.kick(text_of(arguments, "id")),
    "pause": lambda server, arguments: server.actions.pause(),
    "resume": lambda server, arguments: server.actions.resume(),
    "why": lambda server, arguments: server.actions.why(text_of(arguments, "id")),
    "steps": _every_step,
}
