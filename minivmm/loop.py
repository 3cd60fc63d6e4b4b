"""The event loop and THE lock: asyncio underneath, everything that touches devices on top.

The loop runs in the main thread of `minivmm boot`. vCPU threads take `lock` only to serve an exit;
the loop takes it around every callback given here. Correctness never rests on the GIL.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable

Callback = Callable[[], object]

SWITCH_INTERVAL = 0.0005
"""Seconds after which a busy Python thread makes room for another (CPython's default is 0.005)."""


class EventLoop:
    """asyncio plus the machine's lock; methods may be called from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        # A thread that computes may keep the interpreter for this long before an exit is served.
        sys.setswitchinterval(SWITCH_INTERVAL)
        self.lock = threading.RLock()
        self.asyncio = loop or asyncio.new_event_loop()

    def call_soon(self, fn: Callback) -> None:
        """Run `fn` on the loop, lock held, after what it is doing now."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the machine is gone
            self.asyncio.call_soon_threadsafe(self._locked, fn)

    def call_later(self, seconds: float, fn: Callback) -> Callable[[], None]:
        """Run `fn` on the loop, lock held, in `seconds`; returns the canceller.

        Only from the loop's own thread.
        """
        return self.asyncio.call_later(seconds, self._locked, fn).cancel

    def watch(self, fd: int, callback: Callback) -> Callable[[], None]:
        """Run `callback` on the loop, lock held, whenever `fd` is readable; returns the un-watcher.

        The fd must stay open until the un-watcher was called.
        """
        wanted = True

        def begin() -> None:
            if wanted:  # it may be over before the loop gets to it, and the fd closed
                self.asyncio.add_reader(fd, self._locked, callback)

        def unwatch() -> None:
            nonlocal wanted
            wanted = False
            self._on_loop(lambda: self.asyncio.remove_reader(fd))

        self._on_loop(begin)
        return unwatch

    def watch_eventfd(self, callback: Callback) -> tuple[int, Callable[[], None]]:
        """A new eventfd and its closer; `callback` runs on the loop, lock held, after writes."""
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

        def drained() -> None:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(fd)
            callback()

        unwatch = self.watch(fd, drained)

        def close() -> None:
            unwatch()
            self._on_loop(lambda: os.close(fd))

        return fd, close

    def _locked(self, fn: Callback) -> None:
        with self.lock:
            fn()

    def _on_loop(self, fn: Callback) -> None:
        """Run `fn` in the loop's thread: now if that is us, soon otherwise."""
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self.asyncio:
            fn()
            return
        with contextlib.suppress(RuntimeError):
            self.asyncio.call_soon_threadsafe(fn)
