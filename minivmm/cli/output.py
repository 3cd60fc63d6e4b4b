"""Writing the guest's output to a file that may be slow, without holding up the guest."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

BACKLOG = 4 << 20
"""Bytes that may wait for a slow reader; what comes on top of them is lost, and said so."""

LOST = b"\r\n[minivmm: console output lost]\r\n"


class Output:
    """Writes to `fd` from a thread of its own. `write` may be called from any thread.

    `on_gone` is called, from the writing thread, when nobody reads any more (EPIPE).
    """

    def __init__(self, fd: int, on_gone: Callable[[], None] = lambda: None) -> None:
        self._fd = fd
        self._on_gone = on_gone
        self._pending = bytearray()
        self._lost = False
        self._writing = False
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._write_all, name="console", daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> None:
        """Have `data` written soon; never blocks."""
        with self._changed:
            if len(self._pending) + len(data) > BACKLOG:
                self._lost = True
                return
            if self._lost:
                self._pending += LOST
                self._lost = False
            self._pending += data
            self._changed.notify()

    def waiting(self) -> bool:
        """True while something is not handed to the reader yet."""
        with self._changed:
            return self._writing or bool(self._pending)

    def close(self, timeout: float = 2.0) -> None:
        """Write what waits, for at most `timeout` seconds."""
        with self._changed:
            if self._lost:
                self._pending += LOST
                self._lost = False
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                while not self._pending and not self._closing:
                    self._changed.wait()
                data = bytes(self._pending)
                self._pending.clear()
                self._writing = bool(data)
            if not data:
                return
            if not self._write(data):
                return

    def _write(self, data: bytes) -> bool:
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            self._on_gone()
            return False
        return True
