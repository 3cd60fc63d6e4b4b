"""The GDB remote protocol on the wire: packets, checksums, escapes, acknowledgements.

GDB manual, appendix "GDB Remote Serial Protocol", Overview. What packets say is gdb_session.py's.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

INTERRUPT = 0x03
"""A byte outside packets: stop the target (Ctrl-C)."""

PACKET_MAX = 0x4000
"""Longest packet that we take, in bytes between `$` and `#`."""

_ESCAPED = b"#$}*"
_ESCAPE = 0x7D
_FLIP = 0x20


class Control(Enum):
    """What comes beside packets."""

    INTERRUPT = "interrupt"
    REPEAT = "repeat"
    """The last reply did not arrive (`-`)."""
    DAMAGED = "damaged"
    """A packet with a wrong checksum came, or one too long."""


def escape(data: bytes) -> bytes:
    """Binary `data` so that it may stand in a packet."""
    out = bytearray()
    for byte in data:
        if byte in _ESCAPED:
            out += bytes((_ESCAPE, byte ^ _FLIP))
        else:
            out.append(byte)
    return bytes(out)


def unescape(data: bytes) -> bytes:
    """Undo `escape`."""
    out = bytearray()
    flip = 0
    for byte in data:
        if byte == _ESCAPE and not flip:
            flip = _FLIP
        else:
            out.append(byte ^ flip)
            flip = 0
    return bytes(out)


def frame(body: bytes) -> bytes:
    """`body`, escaped where it has to be, as a packet."""
    return b"$%s#%02x" % (body, sum(body) & 0xFF)


class PacketReader:
    """Takes input in pieces of any size; gives packets' bodies (still escaped) and Controls."""

    def __init__(self) -> None:
        self._body: bytearray | None = None  # of the packet that is coming
        self._digits = b""
        self._ended = False

    def feed(self, data: bytes) -> Iterator[bytes | Control]:
        """What `data` completes, in order."""
        for byte in data:
            if self._body is None:
                if byte == ord("$"):
                    self._body, self._digits, self._ended = bytearray(), b"", False
                elif byte == INTERRUPT:
                    yield Control.INTERRUPT
                elif byte == ord("-"):
                    yield Control.REPEAT
            elif self._ended:
                self._digits += bytes((byte,))
                if len(self._digits) == 2:
                    body, self._body = bytes(self._body), None
                    yield body if _matches(body, self._digits) else Control.DAMAGED
            elif byte == ord("#"):
                self._ended = True
            elif len(self._body) < PACKET_MAX:
                self._body.append(byte)
            else:
                self._body = None
                yield Control.DAMAGED


def _matches(body: bytes, digits: bytes) -> bool:
    try:
        return int(digits, 16) == sum(body) & 0xFF
    except ValueError:
        return False
