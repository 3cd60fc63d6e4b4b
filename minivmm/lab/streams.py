"""Byte streams over the lab's wire: descriptors become frames and frames go to descriptors.

Both ends use this; what a channel is for is decided in agent.py (inside) and link.py (host).

Flow control: a Source may send WINDOW bytes; the Sink at the other end grants more as it writes
them out. So a reader that stalls stalls its own stream only, and holds at most WINDOW bytes.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from typing import Any

from minivmm.frames import Decoder, Frame, FrameError, Kind
from minivmm.lab.loop import READ, WRITE, Loop

WINDOW = 256 * 1024
"""Bytes of one stream that may be on their way."""
CHUNK = 64 * 1024
"""Bytes read or written at once."""
CREDIT = struct.Struct("<BI")
"""Payload of Kind.CREDIT: the kind of the data frames, bytes granted."""


def json_frame(channel: int, kind: Kind, value: dict[str, Any]) -> Frame:
    """A frame whose payload is a JSON object."""
    return Frame(channel, kind, json.dumps(value).encode())


def json_payload(frame: Frame) -> dict[str, Any]:
    """The JSON object in a frame. Raises FrameError if there is none."""
    try:
        value = json.loads(frame.payload)
    except ValueError as error:
        raise FrameError(f"{frame.kind.name} frame without JSON: {error}") from error
    if not isinstance(value, dict):
        raise FrameError(f"{frame.kind.name} frame with JSON that is no object")
    return value


class Wire:
    """Frames in both directions over descriptor `fd`, which it owns; never blocks."""

    def __init__(
        self, loop: Loop, fd: int, on_frame: Callable[[Frame], None], on_end: Callable[[], None]
    ) -> None:
        self.loop = loop
        self._in, self._out = fd, os.dup(fd)
        os.set_blocking(fd, False)
        self._on_frame = on_frame
        self._on_end = on_end
        self._decoder = Decoder()
        self._pending = bytearray()
        loop.watch(self._in, READ, self._readable)

    def send(self, frame: Frame) -> None:
        """Queue `frame`; the streams' windows bound what can pile up here."""
        if not self._pending:
            self.loop.watch(self._out, WRITE, self._writable)
        self._pending += frame.encode()

    def close(self) -> None:
        """Stop and close both descriptors."""
        for fd in (self._in, self._out):
            self.loop.unwatch(fd)
            os.close(fd)

    def _readable(self) -> None:
        try:
            data = os.read(self._in, CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._on_end()
            return
        for frame in self._decoder.feed(data):
            self._on_frame(frame)

    def _writable(self) -> None:
        try:
            written = os.write(self._out, self._pending[:CHUNK])
        except BlockingIOError:
            return
        except OSError:
            self.loop.unwatch(self._out)  # reading tells of the end, and who was waiting
            return
        del self._pending[:written]
        if not self._pending:
            self.loop.unwatch(self._out)


class Source:
    """Sends what can be read from `fd`, which it owns, as frames of one kind.

    `on_end` is called once: at the end of the stream, after `stop`, or when `expire` found no more.
    """

    def __init__(
        self, wire: Wire, channel: int, kind: Kind, fd: int, on_end: Callable[[], None]
    ) -> None:
        self._wire = wire
        self._channel = channel
        self._kind = kind
        self._fd = fd
        self._on_end = on_end
        self._credit = WINDOW
        self._expiring = False
        self.ended = False
        wire.loop.watch(fd, READ, self._readable)

    def grant(self, count: int) -> None:
        """The peer takes `count` more bytes."""
        if self.ended:
            return
        self._credit += count
        self._wire.loop.watch(self._fd, READ, self._readable)
        if self._expiring:
            self._readable()

    def expire(self) -> None:
        """The writer is gone: send what is there, but do not wait for others that hold the pipe."""
        if not self.ended:
            self._expiring = True
            os.set_blocking(self._fd, False)
            self._readable()

    def stop(self) -> None:
        """Read no more and close."""
        if self.ended:
            return
        self.ended = True
        self._wire.loop.unwatch(self._fd)
        os.close(self._fd)
        self._on_end()

    def _readable(self) -> None:
        while self._credit and not self.ended:
            try:
                data = os.read(self._fd, min(self._credit, CHUNK))
            except BlockingIOError:
                if self._expiring:
                    self.stop()
                return
            except OSError:  # a pty without its other side answers EIO, a lost peer ECONNRESET
                data = b""
            if not data:
                self.stop()
                return
            self._credit -= len(data)
            self._wire.send(Frame(self._channel, self._kind, data))
            if not self._expiring:
                break  # one read each round: other streams have their turn
        if not self._credit and not self.ended:
            self._wire.loop.unwatch(self._fd)


class Sink:
    """Writes the data frames of one kind to `fd`, which it owns, and grants the source more.

    `chunk` is how much a write may be given: PIPE_BUF for descriptors that block, which take that
    much without blocking once poll(2) calls them writable. `on_end` is called once: when all was
    written after `finish`, or when nobody reads any more.
    """

    def __init__(
        self,
        wire: Wire,
        channel: int,
        kind: Kind,
        fd: int,
        on_end: Callable[[], None] = lambda: None,
        *,
        chunk: int = CHUNK,
    ) -> None:
        self._wire = wire
        self._channel = channel
        self._kind = kind
        self._fd = fd
        self._on_end = on_end
        self._chunk = chunk
        self._pending = bytearray()
        self._owed = 0
        self._finishing = False
        self.ended = False

    def feed(self, data: bytes) -> None:
        """Write `data` as soon as `fd` takes it."""
        if self.ended or self._finishing:
            return
        self._pending += data
        if self._pending:
            self._wire.loop.watch(self._fd, WRITE, self._writable)

    def finish(self) -> None:
        """No more data comes: close after the rest is written."""
        self._finishing = True
        if not self._pending:
            self._end()

    def abandon(self) -> None:
        """Close now, whatever is left."""
        self._pending.clear()
        self.finish()

    def _writable(self) -> None:
        try:
            written = os.write(self._fd, self._pending[: self._chunk])
        except BlockingIOError:
            return
        except OSError:
            self._wire.send(Frame(self._channel, Kind.STOP, bytes([self._kind])))
            self.abandon()
            return
        del self._pending[:written]
        self._owed += written
        if self._owed >= WINDOW // 2 and not self._finishing:
            credit = CREDIT.pack(self._kind, self._owed)
            self._wire.send(Frame(self._channel, Kind.CREDIT, credit))
            self._owed = 0
        if not self._pending:
            self._wire.loop.unwatch(self._fd)
            if self._finishing:
                self._end()

    def _end(self) -> None:
        if not self.ended:
            self.ended = True
            self._wire.loop.unwatch(self._fd)
            os.close(self._fd)
            self._on_end()
