"""Waiting on the loop until the guest's agent listens; what is then asked of it is elsewhere."""

from __future__ import annotations

import asyncio

from minivmm.control.agent import GuestAgent
from minivmm.errors import WaitTimeout
from minivmm.loop import EventLoop

READY_TIMEOUT = 300.0
"""Seconds that a guest may take until it runs commands; slow hosts emulate every step."""

LAST_WORDS = 3.0
"""Seconds that a machine may take to say what it died of, after its agent went away."""


async def until_ready(agent: GuestAgent, loop: EventLoop, timeout: float | None) -> None:
    """Return once `agent` listens. Raises WaitTimeout if that takes more than `timeout` seconds."""
    ready = asyncio.Event()

    def notice() -> None:
        loop.asyncio.call_soon_threadsafe(ready.set)

    with loop.lock:
        if agent.ready:
            return
        agent.on_ready.append(notice)
    try:
        async with asyncio.timeout(timeout):
            await ready.wait()
    except TimeoutError:
        raise WaitTimeout(
            f"the guest agent did not answer within {timeout:g} s: is the guest still booting?"
        ) from None
    finally:
        with loop.lock:
            agent.on_ready.remove(notice)
