"""The event loop under both ends of the lab's wire; what is read and written is in streams.py.

asyncio would do the same and selectors half of it, but inside the lab, where the agent runs,
importing them takes 2 s and 0.2 s: what the agent needs imports little.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections import deque
from collections.abc import Callable

READ = select.POLLIN
WRITE = select.POLLOUT


class Loop:
    """Calls functions when descriptors are ready. One thread steps it; each fd has one direction.

    poll(2) underneath, because epoll refuses regular files, and a command's stdin may be one.
    """

    def __init__(self) -> None:
        self._poll = select.poll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._wake_in, self.wake_fd = os.pipe()
        """`wake_fd`: a byte written there ends a waiting step (see signal.set_wakeup_fd)."""
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self.wake_fd, False)
        self.watch(self._wake_in, READ, self._drain_wake)

    def watch(self, fd: int, event: int, callback: Callable[[], None]) -> None:
        """From now on call `callback` whenever `fd` is ready for READ or WRITE, or broken."""
        self._callbacks[fd] = callback
        self._poll.register(fd, event)

    def unwatch(self, fd: int) -> None:
        """Stop watching `fd`; one that is not watched is fine."""
        if self._callbacks.pop(fd, None):
            self._poll.unregister(fd)

    def call_soon(self, function: Callable[[], None]) -> None:
        """Have the stepping thread call `function`; from any thread and from signal handlers."""
        self._calls.append(function)
        with contextlib.suppress(BlockingIOError):  # full: it wakes up anyway
            os.write(self.wake_fd, b"\0")

    def step(self, timeout: float | None = None) -> None:
        """Wait for something to do, at most `timeout` seconds (None: forever), and do it."""
        ready = self._poll.poll(None if timeout is None else timeout * 1000)
        for fd, callback in [(fd, self._callbacks[fd]) for fd, _ in ready]:
            # A callback of this round may have closed this descriptor and even reused its number.
            if self._callbacks.get(fd) is callback:
                callback()
        while self._calls:
            self._calls.popleft()()

    def close(self) -> None:
        """Close the loop's own descriptors; the watched ones belong to others."""
        os.close(self._wake_in)
        os.close(self.wake_fd)

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_in, 4096)
