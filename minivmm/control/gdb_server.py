"""Where GDB connects: the socket, one connection at a time, and what happens when it is lost.

A GDB that connects finds the machine stopped; one that is gone leaves no breakpoints behind. What
packets mean is in gdb_session.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

from minivmm.control.face import Context
from minivmm.control.gdb_address import Address
from minivmm.control.gdb_packets import Control, PacketReader, frame
from minivmm.control.gdb_session import GdbSession
from minivmm.control.listening import stop_listening
from minivmm.debugger import Debugger, Stop
from minivmm.errors import HostError
from minivmm.kvm.debug import DebugFeatures
from minivmm.loop import EventLoop
from minivmm.outcome import Outcome
from minivmm.unix_socket import listen

_READ_SIZE = 1 << 16
_LET_GO = 0.01
"""Seconds between looks whether the machine is free for the next GDB."""


class GdbServer:
    """Lives on the machine's asyncio loop."""

    def __init__(
        self, context: Context, debugger: Debugger, loop: EventLoop, features: DebugFeatures
    ) -> None:
        self._context = context
        self._debugger = debugger
        self._loop = loop
        self._features = features
        self._server: asyncio.Server | None = None
        self._path: Path | None = None
        self._connection: _Connection | None = None
        self._over = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, address: Address) -> Address:
        """Listen; returns the address with the port that it became. Raises HostError."""
        listener = bind(address)
        self._path = address.path
        self._server = await asyncio.start_server(self._accept, sock=listener)
        return bound(address, listener)

    def ended(self, outcome: Outcome) -> None:
        """The machine is over (lock held, on the loop)."""
        self._over = True
        if self._connection is not None:
            self._connection.ended(outcome)

    async def close(self) -> None:
        """Stop listening and hang up; the machine is not touched any more."""
        if self._server is not None:
            await stop_listening(self._server)
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        if self._connection is not None:
            with self._loop.lock:
                self._debugger.forget()
            self._connection.hang_up()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._over or self._connection is not None:
            writer.close()  # the machine has one debugger at a time
            return
        self._connection = _Connection(self._context, self._debugger, self._loop, writer)
        task = asyncio.get_running_loop().create_task(self._serve(self._connection, reader))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: _Connection, reader: asyncio.StreamReader) -> None:
        try:
            await connection.serve(reader, self._features)
            while self._debugger.attached:  # letting go of vCPUs that run takes a moment
                await asyncio.sleep(_LET_GO)
        finally:
            self._connection = None


class _Connection:
    """One GDB, from its connecting to its end."""

    def __init__(
        self,
        context: Context,
        debugger: Debugger,
        loop: EventLoop,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._session = GdbSession(context, debugger)
        self._debugger = debugger
        self._loop = loop
        self._writer = writer
        self._attached = asyncio.Event()
        self._last = b""

    async def serve(self, reader: asyncio.StreamReader, features: DebugFeatures) -> None:
        """Stop the machine, do as told, let go."""
        with self._loop.lock:
            self._debugger.on_stop = self._on_stop
            self._debugger.attach(features)
        try:
            await self._attached.wait()
            packets = PacketReader()
            with contextlib.suppress(OSError):
                while data := await reader.read(_READ_SIZE):
                    for item in packets.feed(data):
                        self._take(item)
                    await self._writer.drain()
        finally:
            with self._loop.lock:
                if self._debugger.attached:
                    self._debugger.detach(run=False)
            self._writer.close()

    def ended(self, outcome: Outcome) -> None:
        """Tell GDB, if it waits for the guest."""
        if self._debugger.attached and not self._debugger.stopped:
            self._send(b"X06" if outcome.died else b"W00")
        self._debugger.forget()
        self.hang_up()

    def hang_up(self) -> None:
        """Have `serve` end, once GDB has what was sent to it."""
        self._attached.set()
        self._writer.close()

    def _on_stop(self, stop: Stop) -> None:
        if self._attached.is_set():
            self._send(self._session.stopped(stop))
        else:
            self._session.stopped(stop)  # GDB will ask
            self._attached.set()

    def _take(self, item: bytes | Control) -> None:
        if item is Control.INTERRUPT:
            with self._loop.lock:
                if self._debugger.attached and not self._debugger.stopped:
                    self._debugger.interrupt()
        elif item is Control.REPEAT:
            self._writer.write(self._last)
        elif item is Control.DAMAGED:
            if self._session.acknowledges:
                self._writer.write(b"-")
        elif isinstance(item, bytes):
            self._answer(item)

    def _answer(self, packet: bytes) -> None:
        if self._session.acknowledges:
            self._writer.write(b"+")
        with self._loop.lock:
            reply = self._session.handle(packet)
        if reply is not None:
            self._send(reply)

    def _send(self, body: bytes) -> None:
        if not self._writer.transport.is_closing():
            self._last = frame(body)
            self._writer.write(self._last)


def bind(address: Address) -> socket.socket:
    """A socket that has `address`, and does not listen yet. Raises HostError."""
    if address.path is not None:
        return listen(address.path)
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, where = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
        except OSError:
            listener.close()
            raise
        return listener
    except OSError as error:
        why = error.strerror or error
        raise HostError(
            f"cannot listen for gdb on {address}: {why}: choose another port (--gdb=PORT; 0 takes"
            " any)"
        ) from None


def bound(address: Address, listener: socket.socket) -> Address:
    """`address` with the port that it became."""
    if address.path is not None:
        return address
    return Address(host=address.host, port=listener.getsockname()[1])
