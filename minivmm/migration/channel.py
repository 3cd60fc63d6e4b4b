"""Channel: frames over a connected socket, in one thread, with a reason for everything that fails.

What a peer says of itself before it goes (FAILED) is worth more than how its end looked from here,
so it is looked for whenever the connection breaks.
"""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import time

from minivmm.closing import Closing
from minivmm.errors import MigrationError
from minivmm.migration import wire
from minivmm.migration.wire import Frame, FrameHeader, Kind, Preamble

PATIENCE = 30.0
"""Seconds in which a peer has to take something, or to answer."""

_PIECE = 1 << 18
"""Bytes sent or received at once; PATIENCE is for each."""

_LAST_WORDS = 1.0
"""Seconds that a peer's reason may take to come when it hung up."""

_UNREAD = 8
"""Frames of a target that may lie before its reason."""

_NAMES = {wire.SOURCE: "source", wire.TARGET: "target"}


class PeerFailed(MigrationError):
    """The peer said itself that it cannot go on."""


class Channel(Closing):
    """Our end, in the role of `role`; `helper` is the process that carries it, if there is one.

    Methods but `abort` are for one thread. All raise MigrationError.
    """

    def __init__(
        self, link: socket.socket, role: int, helper: subprocess.Popen[bytes] | None = None
    ) -> None:
        self.sent = 0
        """Bytes so far."""
        self.level = 0
        """zlib's level for PAGES; 0 leaves them as they are."""
        self._link = link
        self._role = role
        self._helper = helper
        self._peer = _NAMES[wire.TARGET if role == wire.SOURCE else wire.SOURCE]
        self._sent_frames = 0
        self._received_frames = 0

    def greet(self) -> None:
        """Say who we are."""
        try:
            self._send(Preamble(role=self._role).build())
        except MigrationError as error:
            raise MigrationError(f"no {self._peer} of a migration is there: {error}") from None

    def expect_greeting(self, patience: float | None = PATIENCE) -> None:
        """Hear who the peer is: the other side of a migration, of a version that we understand."""
        try:
            said = Preamble.parse(self._receive(Preamble.SIZE, patience))
        except MigrationError as error:
            raise MigrationError(f"no {self._peer} of a migration is there: {error}") from None
        if said.magic != wire.MAGIC or _NAMES.get(said.role) != self._peer:
            raise MigrationError(f"what is there is no {self._peer} of a minivmm migration")
        if said.version != wire.VERSION:
            raise MigrationError(
                f"the {self._peer} speaks version {said.version} of the migration stream, this"
                f" minivmm version {wire.VERSION}: use the same minivmm on both sides"
            )

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        """One frame."""
        level = self.level if kind is Kind.PAGES else 0
        self._send(wire.encode(kind, payload, self._sent_frames, level=level))
        self._sent_frames += 1

    def receive(self, patience: float | None = PATIENCE) -> Frame:
        """The next frame, which has to begin within `patience` seconds."""
        number = self._received_frames
        data = self._receive(FrameHeader.SIZE, patience)
        header = wire.read_header(data, number)
        payload = self._receive(header.length, PATIENCE)
        self._received_frames += 1
        frame = wire.decode(header, data, payload)
        if frame.kind is Kind.FAILED:
            raise PeerFailed(f"the {self._peer} says: {_one_line(frame.payload)}")
        return frame

    def expect(self, kind: Kind, patience: float | None = PATIENCE) -> bytes:
        """What the next frame carries, which must be of this kind."""
        frame = self.receive(patience)
        if frame.kind is not kind:
            raise MigrationError(
                f"the {self._peer} sent {frame.kind.name} where {kind.name} was to come"
            )
        return frame.payload

    def check(self) -> None:
        """Raise what the peer has to say, if it said anything: nothing was to come now."""
        if select.select([self._link], [], [], 0)[0]:
            frame = self.receive()
            raise MigrationError(f"the {self._peer} sent {frame.kind.name} unasked")

    def fail(self, why: str) -> None:
        """Tell the peer that it is over, if it can still be told, and let it take that in."""
        deadline = time.monotonic() + _LAST_WORDS
        with contextlib.suppress(MigrationError, OSError, ValueError):
            self._link.settimeout(_LAST_WORDS)
            text = why.encode()[: wire.LIMITS[Kind.FAILED]]
            self._link.sendall(wire.encode(Kind.FAILED, text, self._sent_frames))
            # A connection closed with something unread is reset, and what we said may be lost.
            socket.socket.shutdown(self._link, socket.SHUT_WR)
            while self._link.recv(_PIECE) and time.monotonic() < deadline:
                pass

    def abort(self) -> None:
        """Make whatever goes on here fail at once; from any thread."""
        with contextlib.suppress(OSError):
            # Not the method of an SSLSocket: that would first undo the encryption.
            socket.socket.shutdown(self._link, socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up; harmless when repeated."""
        self._link.close()
        if self._helper is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._helper.wait(_LAST_WORDS)
            self._helper.kill()
            self._helper.wait()
            self._helper = None

    def _send(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            self._link.settimeout(PATIENCE)
            while rest:
                done = self._link.send(rest[:_PIECE])
                self.sent += done
                rest = rest[done:]
        except TimeoutError:
            raise MigrationError(
                f"the {self._peer} has taken nothing for {PATIENCE:g} s: it hangs, or the link does"
            ) from None
        except OSError as error:
            self._last_words()
            raise self._lost(error.strerror or str(error)) from error

    def _last_words(self) -> None:
        """Raise what the peer said before it hung up, if that can still be read."""
        try:
            for _ in range(_UNREAD):
                self.receive(_LAST_WORDS)
        except PeerFailed:
            raise
        except MigrationError:
            pass

    def _receive(self, size: int, patience: float | None) -> bytes:
        """Exactly so many bytes; `patience` is for the first of them."""
        data = bytearray(size)
        rest = memoryview(data)
        try:
            self._link.settimeout(patience)
            while rest:
                count = self._link.recv_into(rest[:_PIECE])
                if not count:
                    raise self._lost("it hung up")
                rest = rest[count:]
                self._link.settimeout(PATIENCE)
        except TimeoutError:
            raise MigrationError(
                f"the {self._peer} has said nothing for {self._link.gettimeout():g} s: it hangs,"
                " or the link does"
            ) from None
        except OSError as error:
            raise self._lost(error.strerror or str(error)) from error
        return bytes(data)

    def _lost(self, why: str) -> MigrationError:
        return MigrationError(f"the connection to the {self._peer} is lost: {why}")


def _one_line(text: bytes) -> str:
    """What a peer said, whatever it said, as one printable line."""
    words = " ".join(text.decode(errors="replace").split())
    return "".join(char if char.isprintable() else "?" for char in words)
