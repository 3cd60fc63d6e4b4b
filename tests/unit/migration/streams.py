"""Streams of a migration as bytes and as frames, and a target that is fed with them."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterable
from typing import Any

from minivmm.errors import MinivmmError
from minivmm.migration import wire
from minivmm.migration.channel import Channel
from minivmm.migration.progress import Progress
from minivmm.migration.target import Target
from minivmm.migration.wire import Frame, FrameHeader, Kind, Preamble

PREAMBLE = Preamble(role=wire.SOURCE).build()


class Relay:
    """Stands between the two sides: `connect_to` listens at `here`, and passes on to `there`.

    What passes is kept. A direction that has a limit is cut after so many bytes: both connections
    are closed then, as if a process had been killed.
    """

    def __init__(self, here: str, there: str, *, to_target: int = -1, to_source: int = -1) -> None:
        self.passed = {"to target": bytearray(), "to source": bytearray()}
        self._limits = {"to target": to_target, "to source": to_source}
        self._there = there
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(here)
        self._listener.listen(1)
        self._threads = [threading.Thread(target=self._main)]
        self._threads[0].start()

    def close(self) -> None:
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _main(self) -> None:
        source, _ = self._listener.accept()
        with source, socket.socket(socket.AF_UNIX) as target:
            target.connect(self._there)
            back = threading.Thread(target=self._pass, args=("to source", target, source))
            back.start()
            self._pass("to target", source, target)
            back.join(10)

    def _pass(self, way: str, come: socket.socket, go: socket.socket) -> None:
        passed, limit = self.passed[way], self._limits[way]
        try:
            while data := come.recv(1 << 16):
                if limit >= 0:
                    data = data[: limit - len(passed)]
                passed += data
                go.sendall(data)
                if len(passed) == limit:
                    break
        except OSError:
            pass
        if limit >= 0 and len(passed) == limit:
            for end in (come, go):
                shut(end, socket.SHUT_RDWR)
        else:
            shut(go, socket.SHUT_WR)


def shut(link: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):
        link.shutdown(how)


def split(stream: bytes) -> list[Frame]:
    """The frames of a side."""
    frames: list[Frame] = []
    for start, end in bounds(stream):
        data = stream[start : start + FrameHeader.SIZE]
        header = wire.read_header(data, len(frames))
        frames.append(wire.decode(header, data, stream[start + FrameHeader.SIZE : end]))
    return frames


def bounds(stream: bytes) -> list[tuple[int, int]]:
    """Where each frame begins and ends."""
    found, at = [], Preamble.SIZE
    while at < len(stream):
        header = FrameHeader.parse(stream[at : at + FrameHeader.SIZE])
        end = at + FrameHeader.SIZE + header.length
        found.append((at, end))
        at = end
    return found


def join(frames: Iterable[tuple[Kind, bytes]]) -> bytes:
    """The stream of these frames, with numbers and checksums as they must be."""
    encoded = (wire.encode(kind, data, number) for number, (kind, data) in enumerate(frames))
    return b"".join((PREAMBLE, *encoded))


def feed(party: Any, stream: bytes) -> tuple[MinivmmError | None, bytes]:
    """How `party` ended that got `stream`, and then nothing more; what it answered."""
    ours, theirs = socket.socketpair()
    answered = bytearray()

    def send() -> None:
        with contextlib.suppress(OSError):
            theirs.sendall(stream)
        shut(theirs, socket.SHUT_WR)

    def hear() -> None:
        while data := theirs.recv(1 << 16):
            answered.extend(data)

    threads = [threading.Thread(target=send), threading.Thread(target=hear)]
    for thread in threads:
        thread.start()
    error: MinivmmError | None = None
    with theirs, Channel(ours, wire.TARGET) as channel:
        try:
            Target(party.machine, channel, Progress()).receive(lambda: party.started.append(True))
        except MinivmmError as failure:
            error = failure
        channel.abort()
        for thread in threads:
            thread.join(10)
    return error, bytes(answered)
