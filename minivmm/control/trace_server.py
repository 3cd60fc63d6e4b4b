"""The trace socket of a running VM: each client says what it wants and gets events as JSON Lines.

What is in the lines, and how a client asks, is in docs/trace.md; tracing/feed.py keeps what waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

from minivmm.control.clients import Clients
from minivmm.errors import UsageError
from minivmm.loop import EventLoop
from minivmm.tracing.feed import Feed
from minivmm.tracing.scene import Scene
from minivmm.tracing.wish import Wish, wish_from_json

LONGEST_WISH = 1 << 16
"""Bytes of the line that a client may send."""

INTERVAL = 0.02
"""Seconds in which events are gathered, so that a client costs the loop some wake-ups a second."""

BATCH = 64
"""Lines made at a time: below a millisecond in which queues have to wait."""


class TraceServer:
    """Serves the events of one machine; lives on its asyncio loop."""

    def __init__(self, scene: Scene, loop: EventLoop) -> None:
        self._clients = Clients(
            lambda writer: _Client(scene, loop, writer), line_limit=LONGEST_WISH
        )

    async def start(self, path: Path) -> None:
        """Listen on `path` (mode 0600). Raises HostError."""
        await self._clients.listen(path)

    async def close(self) -> None:
        """Stop listening, let the last events leave, drop all clients, remove the socket."""
        await self._clients.close()


class _Client:
    """One connection. Everything runs on the loop but `_wake`."""

    def __init__(self, scene: Scene, loop: EventLoop, writer: asyncio.StreamWriter) -> None:
        self._scene = scene
        self._loop = loop
        self._writer = writer
        self._woken = asyncio.Event()
        self._ending = asyncio.Event()
        self._over = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader) -> None:
        """Until the client is gone, or `finish`."""
        self._reader = reader
        try:
            await self._serve()
        finally:
            self._over.set()

    async def _serve(self) -> None:
        with contextlib.suppress(ConnectionError):
            try:
                wish = await self._read_wish()
            except UsageError as error:
                self._send(json.dumps({"error": {"class": "GenericError", "desc": str(error)}}))
                await self._writer.drain()
                return
            if wish is not None:
                await self._follow(wish)

    async def finish(self) -> None:
        """The machine ends: send what waits, and no more."""
        self._ending.set()
        self._woken.set()
        await self._over.wait()

    def abort(self) -> None:
        """Drop the client."""
        self._writer.transport.abort()

    async def _read_wish(self) -> Wish | None:
        """What the client wants; None if it left, or the machine ends. Raises UsageError."""
        reading = asyncio.ensure_future(self._reader.readline())
        ending = asyncio.ensure_future(self._ending.wait())
        try:
            await asyncio.wait((reading, ending), return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                return None
            line = reading.result()
        except ValueError:
            raise UsageError(f"the first line is too long: at most {LONGEST_WISH} bytes") from None
        finally:
            reading.cancel()
            ending.cancel()
        if not line.endswith(b"\n"):
            return None  # it left in the middle of it
        try:
            return wish_from_json(json.loads(line))
        except (ValueError, RecursionError):
            raise UsageError("the first line is not JSON; {} asks for everything usual") from None

    async def _follow(self, wish: Wish) -> None:
        with self._loop.lock:
            feed = Feed(self._scene, wish, self._wake)
        gone = asyncio.ensure_future(self._until_gone())
        try:
            self._send(feed.header)
            await self._pass_on(feed, gone)
        finally:
            with self._loop.lock:
                feed.close()
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)

    async def _pass_on(self, feed: Feed, gone: asyncio.Future[None]) -> None:
        """Send what comes, until the client is gone or the machine is."""
        while not gone.done():
            await self._writer.drain()
            lines = feed.take(BATCH)
            if lines:
                self._send("\n".join(lines))
            elif self._ending.is_set():
                return
            else:
                await self._woken.wait()
                self._woken.clear()
                if not self._ending.is_set():
                    await asyncio.sleep(INTERVAL)

    async def _until_gone(self) -> None:
        """Return once the client closed the connection; what it still says is not looked at."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(1 << 12):
                pass
        self._woken.set()
        self._writer.transport.abort()  # a drain() may be waiting for it to read

    def _wake(self) -> None:
        """Any thread: something waits."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the machine is gone
            self._loop.asyncio.call_soon_threadsafe(self._woken.set)

    def _send(self, text: str) -> None:
        if not self._writer.transport.is_closing():
            self._writer.write(text.encode() + b"\n")
