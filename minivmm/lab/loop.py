"""The event loop under both ends of the lab's wire; what is read and written is in streams.py.

asyncio would do the same, but takes ten times as long to import, and inside the lab, where the
agent runs, every import is ten times slower again.
"""

from __future__ import annotations

import contextlib
import os
import selectors
from collections import deque
from collections.abc import Callable

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE


class Loop:
    """Calls functions when descriptors are ready. One thread steps it; each fd has one direction.

    poll(2) underneath, because epoll refuses regular files, and a command's stdin may be one.
    """

    def __init__(self) -> None:
        self._selector = selectors.PollSelector()
        self._calls: deque[Callable[[], None]] = deque()
        self._wake_in, self.wake_fd = os.pipe()
        """`wake_fd`: a byte written there ends a waiting step (see signal.set_wakeup_fd)."""
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self.wake_fd, False)
        self.watch(self._wake_in, READ, self._drain_wake)

    def watch(self, fd: int, event: int, callback: Callable[[], None]) -> None:
        """From now on call `callback` whenever `fd` is ready for READ or WRITE, or broken."""
        if fd in self._selector.get_map():
            self._selector.modify(fd, event, callback)
        else:
            self._selector.register(fd, event, callback)

    def unwatch(self, fd: int) -> None:
        """Stop watching `fd`; one that is not watched is fine."""
        with contextlib.suppress(KeyError):
            self._selector.unregister(fd)

    def call_soon(self, function: Callable[[], None]) -> None:
        """Have the stepping thread call `function`; from any thread and from signal handlers."""
        self._calls.append(function)
        with contextlib.suppress(BlockingIOError):  # full: it wakes up anyway
            os.write(self.wake_fd, b"\0")

    def step(self, timeout: float | None = None) -> None:
        """Wait for something to do, at most `timeout` seconds (None: forever), and do it."""
        for key, _ in self._selector.select(timeout):
            # A callback of this round may have closed this descriptor and even reused its number.
            current = self._selector.get_map().get(key.fd)
            if current is not None and current.data is key.data:
                key.data()
        while self._calls:
            self._calls.popleft()()

    def close(self) -> None:
        """Close the loop's own descriptors; the watched ones belong to others."""
        self._selector.close()
        os.close(self._wake_in)
        os.close(self.wake_fd)

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_in, 4096)
