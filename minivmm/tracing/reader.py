"""Reading traces: of a file, or live from a VM's trace socket. What they say is read elsewhere."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minivmm.errors import HostError, NoSuchMachine, Refused, UsageError
from minivmm.tracing.wish import Wish

_CONNECT_TIMEOUT = 10.0
"""Seconds that a VM may take to answer; it does so at once unless it is stuck."""

_PIECE = 1 << 16


@dataclass(frozen=True)
class Recording:
    """A trace: its header, and its events in order; a generator, which ends with the trace."""

    header: dict[str, Any]
    events: Iterator[dict[str, Any]]


def read_file(path: Path) -> Recording:
    """The trace in `path`. Raises UsageError if it is none, as does reading on where it is damaged.

    A last line that was cut off, as by the end of its writer, is left out.
    """
    try:
        file = path.open(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(f"trace {path} cannot be read: {error.strerror}") from None
    lines = _parsed(path, file)
    header = next(lines, None)
    if header is None or "schema" not in header or "clock" not in header:
        file.close()
        raise UsageError(f"{path} is no trace of minivmm: its first line is no header")
    return Recording(header, lines)


def _parsed(path: Path, file: Any) -> Iterator[dict[str, Any]]:
    with file:
        try:
            for number, line in enumerate(file, 1):
                try:
                    data = json.loads(line)
                except (ValueError, RecursionError):
                    data = None
                if isinstance(data, dict):
                    yield data
                elif line.endswith("\n"):
                    raise UsageError(f"{path}, line {number}: not an event of a trace")
        except OSError as error:
            raise UsageError(f"trace {path} cannot be read: {error.strerror}") from None


def follow(path: Path, wish: Wish, *, seconds: float | None = None) -> Recording:
    """The trace of a running VM, whose trace socket is `path`, for `seconds` or until it ends.

    Raises NoSuchMachine if nothing listens there, Refused for a wish that is not granted.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_CONNECT_TIMEOUT)
        connection.connect(str(path))
        connection.sendall(json.dumps(wish.to_json()).encode() + b"\n")
        deadline = None if seconds is None else time.monotonic() + seconds
        lines = _received(connection, deadline)
        header = next(lines, None)
    except TimeoutError:
        connection.close()
        raise HostError(f"no answer from {path}: the VM is stuck") from None
    except OSError as error:
        connection.close()
        raise NoSuchMachine(f"no VM traces at {path} ({error.strerror})") from None
    if header is None:
        raise NoSuchMachine("the VM ended")
    if "error" in header:
        raise Refused(header["error"]["desc"], header["error"]["class"])
    return Recording(header, lines)


def _received(connection: socket.socket, deadline: float | None) -> Iterator[dict[str, Any]]:
    """What comes, line by line; the first must come in time, the others at leisure."""
    waiting = bytearray()
    started = False
    with connection:
        while True:
            end = waiting.rfind(b"\n") + 1
            lines, waiting = bytes(waiting[:end]), waiting[end:]
            for line in lines.splitlines():
                yield json.loads(line)
                started = True
            if started:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return
                connection.settimeout(left)
            try:
                piece = connection.recv(_PIECE)
            except TimeoutError:
                if not started:
                    raise
                return
            except ConnectionError:
                return
            if not piece:
                return
            waiting += piece
