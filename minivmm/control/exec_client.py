"""Runs a command in the guest through the exec socket, like a local child: blocking, no threads.

The protocol is described in exec_server.py. Signals to us become signals to the command. This is
the path of `minivmm exec`, which should start fast: no asyncio and no construct are imported.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType

from minivmm.control.exec_request import CREDIT, ExecRequest
from minivmm.errors import (
    GuestFailure,
    HostError,
    Interrupted,
    MinivmmError,
    NoSuchMachine,
    UsageError,
    WaitTimeout,
)
from minivmm.frames import Decoder, Frame, FrameError, Kind

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Signals that go to the command instead of ending us."""

PATIENCE = 3
"""As many Ctrl-C end us even if the command does not end: nobody should be trapped."""

_READ_SIZE = 64 * 1024
_ERRORS: dict[str, type[MinivmmError]] = {
    kind.__name__: kind for kind in (UsageError, GuestFailure, WaitTimeout)
}


def run(
    path: Path,
    argv: Sequence[str],
    *,
    stdin: int | None,
    stdout: int,
    stderr: int,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    timeout: float | None = None,
) -> int:
    """Run `argv` in the guest behind exec socket `path`; returns its exit status, 0..255.

    stdin, stdout, stderr are file descriptors (stdin None: the command gets /dev/null). `timeout`
    is how many seconds to wait for the guest agent. Raises NoSuchMachine if nothing listens,
    WaitTimeout, UsageError or GuestFailure if the command did not run or its end is unknown,
    Interrupted after PATIENCE times Ctrl-C, HostError if stdin cannot be read, and OSError
    (BrokenPipeError) if output cannot be written.
    """
    request = ExecRequest(list(argv), dict(env or {}), cwd, stdin is not None, timeout)
    with _connect(path) as connection, _forwarding() as (wakeup, signals):
        client = _Client(connection, stdin, stdout, stderr)
        client.post(Kind.OPEN, request.encode())
        while client.status is None:
            client.step(wakeup)
            while signals:
                message = {"signal": signals.pop(0)}
                client.post(Kind.SIGNAL, json.dumps(message).encode())
        return client.status


class _Client:
    """The state of one run."""

    def __init__(
        self, connection: socket.socket, stdin: int | None, stdout: int, stderr: int
    ) -> None:
        self.status: int | None = None
        self._connection = connection
        self._stdin = stdin
        self._outputs = {Kind.STDOUT: stdout, Kind.STDERR: stderr}
        self._decoder = Decoder()
        self._outgoing = bytearray()
        self._window = 0

    def post(self, kind: Kind, payload: bytes = b"") -> None:
        """Queue a frame for the server."""
        self._outgoing += Frame(0, kind, payload).encode()

    def step(self, wakeup: int) -> None:
        """Wait until something can be done, and do it. `wakeup` becomes readable on signals."""
        connection = self._connection.fileno()
        poll = select.poll()
        poll.register(wakeup, select.POLLIN)
        poll.register(connection, select.POLLIN | (select.POLLOUT if self._outgoing else 0))
        if self._stdin is not None and self._window and not self._outgoing:
            poll.register(self._stdin, select.POLLIN)
        ready = dict(poll.poll())
        if wakeup in ready:
            os.read(wakeup, _READ_SIZE)
        if ready.get(connection, 0) & select.POLLOUT:
            self._send()
        if ready.get(connection, 0) & ~select.POLLOUT:
            self._receive()
        elif self._stdin in ready:
            self._read_stdin(self._stdin)

    def _send(self) -> None:
        # A server that is gone shows up in _receive, after what it said last.
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            sent = self._connection.send(self._outgoing)
            del self._outgoing[:sent]
            return
        self._outgoing.clear()

    def _receive(self) -> None:
        try:
            data = self._connection.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            raise GuestFailure("the VM went away before the command ended")
        try:
            frames = self._decoder.feed(data)
        except FrameError as error:
            raise GuestFailure(f"exec protocol: {error}") from error
        for frame in frames:
            self._handle(frame)

    def _handle(self, frame: Frame) -> None:
        if frame.kind in self._outputs:
            _write_all(self._outputs[frame.kind], frame.payload)
            return
        if frame.kind == Kind.CREDIT:
            self._window += CREDIT.unpack(frame.payload)[1]
        elif frame.kind == Kind.EXIT:
            self.status = json.loads(frame.payload)["status"]
        elif frame.kind == Kind.FAILED:
            message = json.loads(frame.payload)
            raise _ERRORS.get(message["class"], GuestFailure)(message["error"])

    def _read_stdin(self, stdin: int) -> None:
        try:
            data = os.read(stdin, min(self._window, _READ_SIZE))
        except BlockingIOError:
            return
        except OSError as error:
            raise HostError(f"standard input cannot be read: {error.strerror}") from error
        if data:
            self._window -= len(data)
            self.post(Kind.STDIN, data)
        else:
            self._stdin = None
            self.post(Kind.STDIN_EOF)


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        raise NoSuchMachine(f"no VM answers at {path}: {error.strerror}") from error
    connection.setblocking(False)
    return connection


def _write_all(fd: int, data: bytes) -> None:
    """Write everything, also to a descriptor that somebody else made non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])


@contextlib.contextmanager
def _forwarding() -> Iterator[tuple[int, list[int]]]:
    """Collect FORWARDED signals: a descriptor readable after each, and the list they end up in.

    Outside the main thread Python has no signals, so there is nothing to forward.
    """
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    arrived: list[int] = []
    undo: list[Callable[[], object]] = []

    def note(number: int, _: FrameType | None) -> None:
        arrived.append(number)
        interrupts.append(number)
        if interrupts.count(signal.SIGINT) >= PATIENCE:
            raise Interrupted("interrupted; the command in the guest was killed")
        with contextlib.suppress(BlockingIOError):
            os.write(writing, b"!")

    interrupts: list[int] = []
    try:
        with contextlib.suppress(ValueError):  # not the main thread
            for number in FORWARDED:
                before = signal.getsignal(number)
                if before != signal.SIG_IGN:  # nohup and background jobs of plain shells
                    signal.signal(number, note)
                    undo.append(partial(signal.signal, number, before))
        yield reading, arrived
    finally:
        for restore in undo:
            restore()
        os.close(reading)
        os.close(writing)
