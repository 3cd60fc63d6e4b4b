"""EventLog: the last events of a VM as lines for people: those always kept, or every step.

What is kept comes with each look at the VM; every step of a request comes from the trace socket,
and only while somebody wants it, since it costs the VM time (docs/trace.md).
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minivmm.errors import HostError
from minivmm.ui.words import describe

SIZE = 1000
"""Lines kept."""

CONNECT = 5.0
"""Seconds for the trace socket to answer."""

LINE_MAX = 1 << 20
"""Bytes of a line of the trace; more is no trace."""


@dataclass(frozen=True)
class Line:
    """An event; `wall` is Unix time in seconds, `text` what happened without who."""

    number: int
    """Ascending by one from 1, in this log."""
    wall: float
    source: str
    name: str
    text: str

    def to_json(self) -> dict[str, object]:
        """As it goes to a browser."""
        return asdict(self)


class EventLog:
    """`path` is the VM's trace socket. Methods are for any thread."""

    def __init__(self, path: Path) -> None:
        self.after = 0
        """Up to when events are known: what x-minivmm-view takes as events-after."""
        self._path = path
        self._lines: deque[Line] = deque(maxlen=SIZE)
        self._count = 0
        self._lock = threading.Lock()
        self._stream: _Stream | None = None

    @property
    def every_step(self) -> bool:
        """Do all steps of requests come, rather than what is kept anyway?"""
        return self._stream is not None

    def take(self, events: Sequence[Mapping[str, Any]], now: int) -> None:
        """`events` as x-minivmm-view has them, `now` being its time in microseconds."""
        wall = time.time()
        self.after = now
        if self._stream is None:
            for event in events:
                at = wall + (event["time"] - now) / 1e6
                self._add(at, {**event["fields"], "source": event["source"], "name": event["name"]})

    def since(self, number: int) -> list[Line]:
        """Lines whose number is above `number`, oldest first; what was pushed out is missing."""
        with self._lock:
            first = self._count - len(self._lines)
            return list(self._lines)[max(0, number - first) :]

    def want_every_step(self, wanted: bool) -> None:
        """Follow the trace socket, or stop. Raises HostError if it does not answer."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
        if wanted:
            self._stream = _Stream(self._path, self)
            self._stream.start()  # it may be over at once, and says so to us

    def close(self) -> None:
        """Stop following."""
        self.want_every_step(False)

    def from_trace(self, wall: float, event: Mapping[str, Any]) -> None:
        """An event of the trace, which happened at `wall`."""
        self._add(wall, event)

    def ended(self, stream: _Stream) -> None:
        """The trace socket was closed: back to what is kept."""
        if self._stream is stream:
            self._stream = None

    def _add(self, wall: float, event: Mapping[str, Any]) -> None:
        source, name, text = str(event["source"]), str(event["name"]), describe(event)
        with self._lock:
            self._count += 1
            self._lines.append(Line(self._count, wall, source, name, text))


class _Stream:
    """A connection to the trace socket, and the thread that reads from it after `start`."""

    def __init__(self, path: Path, log: EventLog) -> None:
        self._log = log
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._file = self._socket.makefile("rb")
        try:
            self._socket.settimeout(CONNECT)
            self._socket.connect(str(path))
            self._socket.sendall(b'{"details": ["requests"]}\n')
            header = json.loads(self._file.readline(LINE_MAX))
            self._began = float(header["clock"]["wall"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._release()
            why = getattr(error, "strerror", None) or "it does not tell of its trace"
            raise HostError(f"the VM's trace at {path} cannot be followed: {why}") from None
        self._socket.settimeout(None)

    def start(self) -> None:
        """Pass events on from now on."""
        threading.Thread(target=self._read, name="trace", daemon=True).start()

    def close(self) -> None:
        """Hang up; the thread ends."""
        with contextlib.suppress(OSError):  # the VM was first
            self._socket.shutdown(socket.SHUT_RDWR)

    def _release(self) -> None:
        self._file.close()
        self._socket.close()

    def _read(self) -> None:
        try:
            while line := self._file.readline(LINE_MAX):
                event = json.loads(line)
                self._log.from_trace(self._began + event["t"], event)
        except (OSError, ValueError, KeyError, TypeError):
            pass  # the end, or as good as one
        finally:
            self._release()
            self._log.ended(self)
