"""A socket at one end of a channel of the wire; which one, is up to agent.py and link.py."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable

from minivmm.frames import Frame, Kind
from minivmm.lab.streams import CREDIT, Sink, Source, Wire


class Relay:
    """A connected socket at one end of a channel, whose other end is a Relay too.

    Sends frames of kind `sends`, takes the other kind, and passes half-closes on with Kind.CLOSE.
    """

    def __init__(
        self,
        wire: Wire,
        channel: int,
        connection: socket.socket,
        sends: Kind,
        takes: Kind,
        on_end: Callable[[], None],
    ) -> None:
        connection.setblocking(False)
        self._wire = wire
        self._channel = channel
        self._takes = takes
        self._connection = connection
        self._on_end = on_end
        fd = connection.fileno()
        self._source = Source(wire, channel, sends, os.dup(fd), self._source_ended)
        self._sink = Sink(wire, channel, takes, os.dup(fd), self._sink_ended)

    def receive(self, frame: Frame) -> None:
        """Take a frame of this channel."""
        if frame.kind is self._takes:
            self._sink.feed(frame.payload)
        elif frame.kind is Kind.CLOSE:
            self._sink.finish()
        elif frame.kind is Kind.CREDIT:
            self._source.grant(CREDIT.unpack(frame.payload)[1])
        elif frame.kind is Kind.STOP:
            self._source.stop()
        elif frame.kind is Kind.FAILED:
            self.abandon()

    def abandon(self) -> None:
        """Close both directions now; the peer is gone or was never there."""
        self._source.stop()
        self._sink.abandon()

    def _source_ended(self) -> None:
        self._wire.send(Frame(self._channel, Kind.CLOSE))
        self._check_end()

    def _sink_ended(self) -> None:
        with contextlib.suppress(OSError):  # the peer closed it already
            self._connection.shutdown(socket.SHUT_WR)
        self._check_end()

    def _check_end(self) -> None:
        if self._source.ended and self._sink.ended:
            self._connection.close()
            self._on_end()
