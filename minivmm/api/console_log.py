"""What a guest printed, kept for whoever expects something of it; and keys for its console."""

from __future__ import annotations

import asyncio
import codecs
import re

from minivmm.control.console_hub import ConsoleHub
from minivmm.errors import GuestFailure, WaitTimeout
from minivmm.loop import EventLoop

KEPT = 1 << 20
"""Characters of output that are kept; older ones are dropped."""

TOLD = 500
"""Characters of the latest output in a message that something did not come."""


class ConsoleLog:
    """One machine's. Everything but `text` is for its loop, and begins with `begin`."""

    def __init__(self, hub: ConsoleHub, loop: EventLoop) -> None:
        self.text = ""
        """The latest output, at most KEPT characters, without carriage returns."""
        self._hub = hub
        self._loop = loop
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._looked_at = 0
        self._changed = asyncio.Event()
        self._space = asyncio.Event()

    def begin(self) -> None:
        """Listen; lock held."""
        self._hub.watch(self._feed)
        self._keyboard = self._hub.keyboard()
        self._keyboard.on_space = lambda: self._loop.call_soon(self._space.set)

    async def expect(self, pattern: str | re.Pattern[str], timeout: float) -> re.Match[str]:
        """The first match in what no match was found in before; waits for it `timeout` seconds.

        Raises WaitTimeout, with what came instead.
        """
        wanted = re.compile(pattern)
        try:
            async with asyncio.timeout(timeout):
                while True:
                    self._changed.clear()
                    found = wanted.search(self.text, self._looked_at)
                    if found is not None:
                        self._looked_at = found.end()
                        return found
                    await self._changed.wait()
        except TimeoutError:
            raise WaitTimeout(
                f"{wanted.pattern!r} did not come on the console within {timeout:g} s; last came"
                f" {self.text[self._looked_at :][-TOLD:]!r}"
            ) from None

    async def type(self, keys: bytes, timeout: float) -> None:
        """Give all of `keys` to the guest. Raises GuestFailure if it takes none for `timeout` s."""
        while True:
            self._space.clear()
            with self._loop.lock:
                keys = keys[self._keyboard.receive(keys) :]
            if not keys:
                return
            try:
                async with asyncio.timeout(timeout):
                    await self._space.wait()
            except TimeoutError:
                raise GuestFailure(
                    f"the guest took no more keys for {timeout:g} s: {len(keys)} bytes are left;"
                    " is its console open?"
                ) from None

    def _feed(self, data: bytes) -> None:
        self.text += self._decoder.decode(data).replace("\r", "")
        extra = max(0, len(self.text) - KEPT)
        self.text = self.text[extra:]
        self._looked_at = max(0, self._looked_at - extra)
        self._changed.set()
