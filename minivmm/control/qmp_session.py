"""One client of the QMP server: negotiation, dispatch, replies. What commands do is elsewhere.

Runs on the machine's event loop; commands run with the machine's lock held. Protocol: QEMU
docs/interop/qmp-spec.rst; texts recorded from QEMU 7.2.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import traceback
from typing import Any

from minivmm.control import (  # noqa: F401 - they add their commands
    balloon,
    block_commands,
    console_commands,
    hmp,
    memory_commands,
    memory_queries,
    migration_commands,
    pci_commands,
    qom_commands,
    schema,
    snapshot_commands,
    view_commands,
    virtio_commands,
    virtio_element,
)
from minivmm.control.commands import perform
from minivmm.control.face import Context
from minivmm.control.lexer import Lexer, ParseError
from minivmm.control.machine_commands import CAPABILITIES, version
from minivmm.errors import MinivmmError, Refused

BACKLOG_MAX = 4 << 20
"""Bytes that may wait for a client that does not read; then it is dropped."""

PIECE = 1 << 13
"""Bytes of input that are looked at before others get their turn: at worst some milliseconds."""

_MEMBERS = ("execute", "arguments", "id")


class Session:
    """One client, from the greeting to its end."""

    def __init__(
        self, context: Context, lock: threading.RLock, writer: asyncio.StreamWriter
    ) -> None:
        self._context = context
        self._lock = lock
        self._writer = writer
        self._negotiated = False

    async def serve(self, reader: asyncio.StreamReader) -> None:
        """Greet, then answer until the client leaves."""
        self._send({"QMP": {"version": version(), "capabilities": CAPABILITIES}})
        lexer = Lexer()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(PIECE):
                await asyncio.sleep(0)
                for request in lexer.feed(data):
                    self._send(self.answer(request))
                    # One client must not hold up devices and others, however much it sends at once;
                    # nor fill our memory with answers that it does not read.
                    await asyncio.sleep(0)
                    await self._writer.drain()

    def answer(self, request: object) -> dict[str, object]:
        """The reply to one JSON value (or to the ParseError in its place)."""
        identifier = {}
        if isinstance(request, dict) and "id" in request:
            identifier = {"id": request["id"]}
        try:
            return {"return": self._execute(request), **identifier}
        except Refused as error:
            failure = {"class": error.error_class, "desc": str(error)}
        except (MinivmmError, ParseError) as error:
            failure = {"class": "GenericError", "desc": str(error)}
        except Exception as error:
            failure = {"class": "GenericError", "desc": f"minivmm failed: {error!r}"}
            traceback.print_exc()
        return {**identifier, "error": failure}

    def send_event(self, event: dict[str, object]) -> None:
        """Pass an event on; clients that have not negotiated get none."""
        if self._negotiated:
            self._send(event)

    async def finish(self) -> None:
        """Return when all that was sent has left."""
        with contextlib.suppress(ConnectionError):
            self._writer.transport.set_write_buffer_limits(high=0)
            await self._writer.drain()

    def abort(self) -> None:
        """Drop the client."""
        self._writer.transport.abort()

    def _execute(self, request: object) -> object:
        name, arguments = _read_request(request)
        if not self._negotiated and name != "qmp_capabilities":
            raise Refused(
                "Expecting capabilities negotiation with 'qmp_capabilities'", "CommandNotFound"
            )
        if self._negotiated and name == "qmp_capabilities":
            raise Refused(
                "Capabilities negotiation is already complete, command ignored", "CommandNotFound"
            )
        with self._lock:
            result = perform(self._context, name, arguments)
        self._negotiated = True
        return result

    def _send(self, message: dict[str, object]) -> None:
        transport = self._writer.transport
        if transport.is_closing():
            return
        if transport.get_write_buffer_size() > BACKLOG_MAX:
            transport.abort()
            return
        self._writer.write(json.dumps(message).encode() + b"\r\n")


def _read_request(request: object) -> tuple[str, dict[str, Any]]:
    """Command name and arguments. Raises ParseError or Refused, in QEMU's order of checks."""
    if isinstance(request, ParseError):
        raise request
    if not isinstance(request, dict):
        raise Refused("QMP input must be a JSON object")
    for member in request:
        if member not in _MEMBERS:
            raise Refused(f"QMP input member '{member}' is unexpected")
    if "execute" not in request:
        raise Refused("QMP input lacks member 'execute'")
    if not isinstance(request["execute"], str):
        raise Refused("QMP input member 'execute' must be a string")
    arguments = request.get("arguments", {})
    if not isinstance(arguments, dict):
        raise Refused("QMP input member 'arguments' must be an object")
    return request["execute"], arguments
