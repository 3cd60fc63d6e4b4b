"""How the machine's socket servers stop listening without losing who has just come."""

from __future__ import annotations

import asyncio


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
