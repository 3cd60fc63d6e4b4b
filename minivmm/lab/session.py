"""The host's end of a command that runs in the lab: its streams, its signals, its exit status.

The other end is Command in agent.py.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Sequence

from minivmm.errors import HostError
from minivmm.frames import Frame, Kind
from minivmm.lab.loop import Loop
from minivmm.lab.streams import CREDIT, Sink, Source, Wire, json_frame, json_payload


class Session:
    """One command. `wait`, `send_signal` and `resize` are for any thread, the rest for the link's.

    `fds` are the caller's stdin, stdout and stderr; they are duplicated here, and keep blocking.
    """

    def __init__(self, loop: Loop, wire: Wire, fds: Sequence[int]) -> None:
        self._loop = loop
        self._wire = wire
        self._fds = [_duplicate(fd) for fd in fds]  # until `start`, which passes them on
        self._channel = 0  # none yet
        self._on_end: Callable[[], None] = lambda: None
        self._sources: list[Source] = []
        self._sinks: dict[Kind, Sink] = {}
        self._status: int | None = None
        self._failure: HostError | None = None
        self._done = threading.Event()

    def wait(self) -> int:
        """Wait for the end; returns the exit status. Raises HostError if the lab was lost."""
        self._done.wait()
        if self._failure:
            raise self._failure
        assert self._status is not None
        return self._status

    def send_signal(self, number: int) -> None:
        """Have the command's process group signalled; safe in a signal handler."""
        self._loop.call_soon(lambda: self._send(Kind.SIGNAL, {"signal": number}))

    def resize(self, rows: int, columns: int) -> None:
        """Tell the command's terminal its new size; safe in a signal handler."""
        self._loop.call_soon(lambda: self._send(Kind.RESIZE, {"rows": rows, "columns": columns}))

    def start(self, channel: int, on_end: Callable[[], None]) -> None:
        """The command's channel is open: begin to carry its streams."""
        self._channel = channel
        self._on_end = on_end
        stdin, *outputs = self._fds
        self._fds.clear()
        self._sources.append(Source(self._wire, channel, Kind.STDIN, stdin, self._input_ended))
        for kind, fd in zip((Kind.STDOUT, Kind.STDERR), outputs, strict=True):
            # These may block (they are shared with others, so that is not ours to change): PIPE_BUF
            # bytes fit whenever poll(2) says that any do.
            self._sinks[kind] = Sink(
                self._wire, channel, kind, fd, self._check_end, chunk=select.PIPE_BUF
            )

    def receive(self, frame: Frame) -> None:
        """Take a frame of this channel."""
        match frame.kind:
            case Kind.STDOUT | Kind.STDERR:
                self._sinks[frame.kind].feed(frame.payload)
            case Kind.CREDIT:
                self._sources[0].grant(CREDIT.unpack(frame.payload)[1])
            case Kind.STOP:
                self._sources[0].stop()
            case Kind.EXIT:
                self._status = json_payload(frame)["status"]
                self._sources[0].stop()
                for sink in self._sinks.values():
                    sink.finish()
                self._check_end()  # readers that left earlier have nothing more to tell
            case Kind.FAILED:
                self.fail(HostError(json_payload(frame)["error"]))

    def fail(self, error: HostError) -> None:
        """There will be no status: `error` is why."""
        self._failure = error
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        for source in self._sources:
            source.stop()
        for sink in self._sinks.values():
            sink.abandon()
        self._end()

    def _send(self, kind: Kind, value: dict[str, int]) -> None:
        if self._channel and not self._done.is_set():
            self._wire.send(json_frame(self._channel, kind, value))

    def _input_ended(self) -> None:
        if self._status is None and not self._failure:
            self._wire.send(Frame(self._channel, Kind.STDIN_EOF))

    def _check_end(self) -> None:
        if self._status is not None and all(sink.ended for sink in self._sinks.values()):
            self._end()

    def _end(self) -> None:
        if not self._done.is_set():
            self._on_end()
            self._done.set()


def _duplicate(fd: int) -> int:
    """Another descriptor for what `fd` is; for one that is closed, /dev/null."""
    try:
        return os.dup(fd)
    except OSError:
        return os.open(os.devnull, os.O_RDWR)
