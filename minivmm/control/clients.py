"""Clients of a machine's Unix sockets, each served in a task of its own, from accept to hang-up.

What they are served is the business of those who make them: qmp.py, trace_server.py,
console_server.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from minivmm.control.listening import stop_listening
from minivmm.unix_socket import listen

CLOSE_GRACE = 1.0
"""Seconds that the last output gets to leave when the machine ends."""


class Client(Protocol):
    """One connection."""

    async def serve(self, reader: asyncio.StreamReader) -> None:
        """Until the client is gone; may be cancelled."""

    async def finish(self) -> None:
        """The machine ends: return once all that was said has left."""

    def abort(self) -> None:
        """Drop the client."""


C = TypeVar("C", bound=Client)


class Clients(Generic[C]):
    """Lives on the machine's asyncio loop. `make` makes a client of where to write to it.

    `line_limit` bounds, in bytes, what a client may say without the end of a line.
    """

    def __init__(
        self, make: Callable[[asyncio.StreamWriter], C], *, line_limit: int = 1 << 16
    ) -> None:
        self._make = make
        self._line_limit = line_limit
        self._servers: list[asyncio.Server] = []
        self._paths: list[Path] = []
        self._tasks: dict[C, asyncio.Task[None]] = {}

    def __iter__(self) -> Iterator[C]:
        """Those connected now; they may come and go meanwhile."""
        return iter(tuple(self._tasks))

    def __len__(self) -> int:
        """How many are connected."""
        return len(self._tasks)

    async def listen(self, path: Path) -> None:
        """Listen at `path`, for its owner only; possible at several. Raises HostError."""
        listener = listen(path)
        self._paths.append(path)
        self._servers.append(
            await asyncio.start_unix_server(self._accept, sock=listener, limit=self._line_limit)
        )

    async def close(self) -> None:
        """Stop listening, remove the sockets, let the last output leave, hang up."""
        for server in self._servers:
            await stop_listening(server)
        for path in self._paths:
            path.unlink(missing_ok=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_GRACE):
                await asyncio.gather(*(client.finish() for client in self))
        tasks = tuple(self._tasks.items())
        for client, task in tasks:
            client.abort()
            task.cancel()
        await asyncio.gather(*(task for _, task in tasks), return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = self._make(writer)
        task = asyncio.get_running_loop().create_task(client.serve(reader))
        self._tasks[client] = task
        # Not in serve(): a task that is cancelled before its first step runs nothing of it.
        task.add_done_callback(lambda _: self._tasks.pop(client, None))
        task.add_done_callback(lambda _: writer.close())
