"""The QMP server: Unix sockets, events, several clients at once; what is said is qmp_session.py's.

The commands take longer to load than all of a machine, so that is left to the first client.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from minivmm.control.clients import Clients
from minivmm.control.face import Context

if TYPE_CHECKING:
    from minivmm.control.events import Throttle
    from minivmm.control.qmp_session import Session


class QmpServer:
    """Serves one machine on any number of sockets."""

    def __init__(self, context: Context, lock: threading.RLock) -> None:
        self._context = context
        self._lock = lock
        self._sessions = Clients(self._serve)
        self._throttle: Throttle | None = None

    async def start(self, path: Path) -> None:
        """Listen on `path` (mode 0600); may be called for several. Raises HostError."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        await self._sessions.listen(path)

    async def close(self) -> None:
        """Stop listening, let the last replies leave, drop all clients, remove the sockets."""
        if self._throttle is not None:
            self._context.machine.on_event.remove(self._on_event)
        await self._sessions.close()

    def _serve(self, writer: asyncio.StreamWriter) -> Session:
        """A client is here; the first one has us load the commands, and heed events."""
        from minivmm.control.events import Throttle
        from minivmm.control.qmp_session import Session

        if self._throttle is None:
            self._throttle = Throttle(self._broadcast, self._loop.call_later)
            self._context.machine.on_event.append(self._on_event)
        return Session(self._context, self._lock, writer)

    def _on_event(self, name: str, data: dict[str, object]) -> None:
        """Any thread. On the loop's own thread events overtake the reply that caused them."""
        assert self._throttle is not None
        if threading.get_ident() == self._thread:
            self._throttle.publish(name, data)
        elif not self._throttle.replace(name, data):
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                self._loop.call_soon_threadsafe(self._throttle.publish, name, data)

    def _broadcast(self, event: dict[str, object]) -> None:
        for session in self._sessions:
            session.send_event(event)
