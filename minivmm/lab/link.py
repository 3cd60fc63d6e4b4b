"""The host's end of the lab's wire: one thread that carries commands, sockets and the console log.

The agent at the other end is agent.py; the processes in between are machine.py's.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minivmm.errors import HostError
from minivmm.frames import MAX_PAYLOAD, Frame, FrameError, Kind
from minivmm.lab.agent import HELLO
from minivmm.lab.console import Console
from minivmm.lab.loop import READ, Loop
from minivmm.lab.relay import Relay
from minivmm.lab.session import Session
from minivmm.lab.streams import Wire, json_frame


class Link:
    """Talks to the agent over descriptor `wire`, reads the console from `log`; owns both.

    `helpers` are pids of processes whose end is the end of the lab. Public methods are for any
    thread.
    """

    def __init__(
        self, wire: int, log: int, *, helpers: Sequence[int] = (), verbose: bool = False
    ) -> None:
        self._loop = Loop()
        self._wire = Wire(self._loop, wire, self._on_frame, lambda: self._lose("it ended"))
        self._console = Console(self._loop, log, verbose=verbose)
        self._helpers = [os.pidfd_open(pid) for pid in helpers]
        for fd in self._helpers:
            self._loop.watch(fd, READ, lambda: self._lose("its file server ended"))
        self._ready = threading.Event()
        self._failure: HostError | None = None
        self._closing = False
        self._channels: dict[int, Session | Relay] = {}
        self._last = HELLO
        self._listeners: list[tuple[socket.socket, Path | None]] = []
        self._thread = threading.Thread(target=self._serve, name="lab link", daemon=True)
        self._thread.start()

    def wait_ready(self, timeout: float) -> None:
        """Wait until the agent listens. Raises HostError if not within `timeout` seconds."""
        if not self._ready.wait(timeout):
            raise HostError(
                f"the lab machine did not come up within {timeout:.0f} s"
                f" (last words: {self._console.last_words()}): run with --verbose to watch it"
            )
        if self._failure:
            raise self._failure

    def run(self, request: dict[str, Any], fds: Sequence[int]) -> Session:
        """Start the command that `request` describes (see agent.py) on stdin, stdout, stderr `fds`.

        The descriptors stay the caller's. Raises HostError if the request is too long.
        """
        opening = json_frame(0, Kind.OPEN, request).payload
        if len(opening) > MAX_PAYLOAD:
            raise HostError(
                f"command and environment have {len(opening)} bytes, the lab takes {MAX_PAYLOAD}:"
                " pass long arguments in a file"
            )
        session = Session(self._loop, self._wire, fds)

        def start() -> None:
            if self._failure:
                session.fail(self._failure)
                return
            channel = self._open(opening)
            self._channels[channel] = session
            session.start(channel, lambda: self._forget(channel))

        self._loop.call_soon(start)
        return session

    def forward(self, listen: Path, target: str, patience: float) -> None:
        """Listen on Unix socket `listen`; connect each client to the socket `target` inside.

        While nothing listens there, clients wait, after `patience` seconds they see an end of file.
        Raises OSError if `listen` cannot be bound.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(listen))
            listener.listen()
        except OSError:
            listener.close()
            raise
        self.forward_socket(listener, target, patience, remove=listen)

    def forward_socket(
        self,
        listener: socket.socket,
        target: str,
        patience: float,
        *,
        remove: Path | None = None,
    ) -> None:
        """The same for a socket that listens already, which is ours from now on.

        `remove` is a file that goes with it.
        """
        listener.setblocking(False)
        self._listeners.append((listener, remove))
        request = {"connect": target, "patience": patience}
        opening = json_frame(0, Kind.OPEN, request).payload
        fd = listener.fileno()
        self._loop.call_soon(
            lambda: self._loop.watch(fd, READ, lambda: self._accept(listener, opening))
        )

    def close(self) -> None:
        """End commands, connections and the thread; remove the sockets of `forward`."""
        self._loop.call_soon(self._stop)
        self._thread.join()
        for listener, path in self._listeners:
            listener.close()
            if path is not None:
                path.unlink(missing_ok=True)
        for fd in self._helpers:
            os.close(fd)
        self._console.close()
        self._loop.close()

    def _serve(self) -> None:
        while not self._closing:
            try:
                self._loop.step()
            except FrameError as error:
                self._lose(f"its agent talks nonsense: {error}")

    def _stop(self) -> None:
        self._closing = True
        self._lose("it was closed")

    def _open(self, opening: bytes) -> int:
        self._last += 1
        self._wire.send(Frame(self._last, Kind.OPEN, opening))
        return self._last

    def _forget(self, channel: int) -> None:
        self._channels.pop(channel, None)

    def _accept(self, listener: socket.socket, opening: bytes) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # the client left already
        if self._failure:
            connection.close()
            return
        channel = self._open(opening)
        self._channels[channel] = Relay(
            self._wire,
            channel,
            connection,
            sends=Kind.STDIN,
            takes=Kind.STDOUT,
            on_end=lambda: self._forget(channel),
        )

    def _on_frame(self, frame: Frame) -> None:
        if frame.channel == HELLO:
            self._ready.set()
        elif frame.channel in self._channels:  # else it is over and the agent did not know yet
            self._channels[frame.channel].receive(frame)

    def _lose(self, why: str) -> None:
        """The lab is gone: whoever waits gets to know, once."""
        if self._failure:
            return
        if not self._closing:
            self._console.drain(1.0)
        self._failure = HostError(f"lab machine lost: {why} ({self._console.last_words()})")
        for channel in list(self._channels.values()):
            if isinstance(channel, Session):
                channel.fail(self._failure)
            else:
                channel.abandon()
        self._wire.close()
        self._ready.set()
