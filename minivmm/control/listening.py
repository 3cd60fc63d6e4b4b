"""How the machine's socket servers begin and stop listening; what they serve is their own."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

from minivmm.errors import HostError


async def stop_listening(server: asyncio.Server) -> None:
    """Close `server`, after the connections that it has accepted were handed to their callback.

    asyncio sets a connection up one loop iteration after it accepted it, and loses it, unclosed,
    if the server was closed in between (CPython 3.11, Server._attach asserts).
    """
    loop = asyncio.get_running_loop()
    for listener in server.sockets:
        loop.remove_reader(listener.fileno())
    for _ in range(3):  # set up, made known to the protocol, given to the callback
        await asyncio.sleep(0)
    server.close()


def listen(path: Path) -> socket.socket:
    """A listening socket at `path` that only its owner can use; a stale one is replaced.

    Raises HostError.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(str(path)) == 0:
                    raise HostError(f"socket {path} is in use by another process: choose another")
            path.unlink()
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
    except OSError as error:
        listener.close()
        why = error.strerror or error  # too long a path has no errno
        raise HostError(f"cannot listen on {path}: {why}") from error
    except HostError:
        listener.close()
        raise
    return listener
