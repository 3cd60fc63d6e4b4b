"""Length-prefixed frames: how byte streams share one socket or serial port.

Used on the exec socket of a running VM and on the wire between host and lab. A frame is a
9-byte header (little-endian: u32 channel, u8 kind, u32 payload length) and its payload.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

HEADER = struct.Struct("<IBI")
MAX_PAYLOAD = 1 << 20
"""Largest payload in bytes; a longer one is a protocol violation."""


class Kind(IntEnum):
    """What a frame carries. JSON payloads are UTF-8 objects; binary ones are passed as they are."""

    OPEN = 1  # JSON: what to run or connect to; the first frame of a channel
    STDIN = 2  # binary
    STDIN_EOF = 3  # empty
    SIGNAL = 4  # JSON {"signal": number}
    RESIZE = 5  # JSON {"rows": n, "columns": n}
    STDOUT = 6  # binary
    STDERR = 7  # binary
    EXIT = 8  # JSON {"status": 0..255}; the last frame of a channel
    FAILED = 9  # JSON {"error": one line}; the last frame of a channel
    CLOSE = 10  # empty; this direction of a connected stream ended
    CREDIT = 11  # u8 kind, u32 bytes: so many bytes of that kind may follow
    STOP = 12  # u8 kind: nobody takes bytes of that kind any more (the lab's wire)


class Frame(NamedTuple):
    """One frame: `channel` 0..2^32-1, its kind, its payload (at most MAX_PAYLOAD bytes)."""

    channel: int
    kind: Kind
    payload: bytes = b""

    def encode(self) -> bytes:
        """Header and payload as they go on the wire."""
        return HEADER.pack(self.channel, self.kind, len(self.payload)) + self.payload


class FrameError(ValueError):
    """The peer sent something that is not a frame."""


class Decoder:
    """Turns a byte stream, in pieces of any size, back into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes, in order. Raises FrameError on a bad header."""
        self._buffer += data
        frames: list[Frame] = []
        start = 0
        while len(self._buffer) - start >= HEADER.size:
            channel, kind, length = HEADER.unpack_from(self._buffer, start)
            if length > MAX_PAYLOAD:
                raise FrameError(f"frame of {length} bytes exceeds {MAX_PAYLOAD}")
            end = start + HEADER.size + length
            if len(self._buffer) < end:
                break
            try:
                frames.append(Frame(channel, Kind(kind), bytes(self._buffer[end - length : end])))
            except ValueError as error:
                raise FrameError(f"frame of unknown kind {kind}") from error
            start = end
        del self._buffer[:start]
        return frames
