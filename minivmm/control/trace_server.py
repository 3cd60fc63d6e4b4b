"""The trace socket of a running VM: each client says what it wants and gets events as JSON Lines.

What is in the lines, and how a client asks, is in docs/trace.md; tracing/feed.py keeps what waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

from minivmm.control.listening import listen, stop_listening
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

CLOSE_GRACE = 1.0
"""Seconds that the last events get to leave when the server closes."""


class TraceServer:
    """Serves the events of one machine; lives on its asyncio loop."""

    def __init__(self, scene: Scene, loop: EventLoop) -> None:
        self._scene = scene
        self._loop = loop
        self._server: asyncio.Server | None = None
        self._path: Path | None = None
        self._clients: dict[_Client, asyncio.Task[None]] = {}

    async def start(self, path: Path) -> None:
        """Listen on `path` (mode 0600). Raises HostError."""
        listener = listen(path)
        self._server = await asyncio.start_unix_server(
            self._accept, sock=listener, limit=LONGEST_WISH
        )
        self._path = path

    async def close(self) -> None:
        """Stop listening, let the last events leave, drop all clients, remove the socket."""
        if self._server is None or self._path is None:
            return
        await stop_listening(self._server)
        self._path.unlink(missing_ok=True)
        for client in self._clients:
            client.end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_GRACE):
                await asyncio.gather(*self._clients.values(), return_exceptions=True)
        for client, task in list(self._clients.items()):
            client.abort()
            task.cancel()
        await asyncio.gather(*self._clients.values(), return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = _Client(self._scene, self._loop, reader, writer)
        task = asyncio.get_running_loop().create_task(client.serve())
        self._clients[client] = task
        # Not in serve(): a task that is cancelled before its first step runs nothing of it.
        task.add_done_callback(lambda _: self._clients.pop(client, None))
        task.add_done_callback(lambda _: writer.close())


class _Client:
    """One connection. Everything runs on the loop but `_wake`."""

    def __init__(
        self,
        scene: Scene,
        loop: EventLoop,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._scene = scene
        self._loop = loop
        self._reader = reader
        self._writer = writer
        self._woken = asyncio.Event()
        self._ending = asyncio.Event()

    async def serve(self) -> None:
        """Until the client is gone, or `end`."""
        with contextlib.suppress(ConnectionError):
            try:
                wish = await self._read_wish()
            except UsageError as error:
                self._send(json.dumps({"error": {"class": "GenericError", "desc": str(error)}}))
                await self._writer.drain()
                return
            if wish is not None:
                await self._follow(wish)

    def end(self) -> None:
        """The machine ends: send what waits, and no more."""
        self._ending.set()
        self._woken.set()

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
