"""The console socket of a running VM: raw bytes both ways, any number of clients at once.

A client gets the latest output first, then all that follows; what it sends is typed. One that does
not read loses output, and is told so; it never holds up the guest, or the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from pathlib import Path

from minivmm.control.clients import Clients
from minivmm.control.console_hub import ConsoleHub
from minivmm.loop import EventLoop

WAITING_MAX = 1 << 20
"""Bytes of output that may wait for a client; what comes on top of them is lost."""

LOST = b"\r\n[minivmm: console output lost]\r\n"

_READ_SIZE = 4096
_LOOK_INTERVAL = 0.5
"""Seconds between looks at a client that only watches."""


class ConsoleServer:
    """Lives on the machine's asyncio loop."""

    def __init__(self, hub: ConsoleHub, loop: EventLoop) -> None:
        self._clients = Clients(lambda writer: _Client(hub, loop, writer))

    async def start(self, path: Path) -> None:
        """Listen at `path`, for its owner only. Raises HostError."""
        await self._clients.listen(path)

    async def close(self) -> None:
        """Stop listening, let the last output leave, hang up."""
        await self._clients.close()


class _Client:
    """One who watches, and may type."""

    def __init__(self, hub: ConsoleHub, loop: EventLoop, writer: asyncio.StreamWriter) -> None:
        self._hub = hub
        self._loop = loop
        self._writer = writer
        self._lost = False
        self._space = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader) -> None:
        """Until the client leaves; one that only has no more to type stays."""
        with self._loop.lock:
            unwatch = self._hub.watch(self._print)
            keyboard = self._hub.keyboard()
            keyboard.on_space = lambda: self._loop.call_soon(self._space.set)
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(_READ_SIZE):
                    while data := data[self._type(data) :]:
                        self._space.clear()
                        await self._pause()
                while True:
                    self._space.clear()
                    await self._pause()
        finally:
            with self._loop.lock:
                unwatch()
                self._hub.drop(keyboard)

    async def finish(self) -> None:
        """Return when all that was printed has left."""
        with contextlib.suppress(OSError):
            self._writer.transport.set_write_buffer_limits(high=0)
            await self._writer.drain()

    def abort(self) -> None:
        """Drop the client."""
        self._writer.transport.abort()

    async def _pause(self) -> None:
        """Until the guest has room for keys. Raises ConnectionError once the client is gone.

        One that only types no more is not gone, and asyncio tells the two apart only if there is
        something to send.
        """
        while not self._space.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._space.wait(), _LOOK_INTERVAL)
            if self._writer.transport.is_closing() or self._hung_up():
                raise ConnectionError("the client is gone")

    def _hung_up(self) -> bool:
        poll = select.poll()
        poll.register(self._writer.get_extra_info("socket").fileno(), 0)
        return bool(poll.poll(0))

    def _type(self, data: bytes) -> int:
        with self._loop.lock:
            return self._hub.receive(data)

    def _print(self, data: bytes) -> None:
        """On the loop."""
        transport = self._writer.transport
        if transport.is_closing():
            return
        if transport.get_write_buffer_size() + len(data) > WAITING_MAX:
            self._lost = True
            return
        if self._lost:
            self._writer.write(LOST)
            self._lost = False
        self._writer.write(data)
