"""TraceFile: a trace into a file, by a thread of its own, whatever becomes of the disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from minivmm.closing import Closing
from minivmm.errors import HostError
from minivmm.loop import EventLoop
from minivmm.trace import Detail
from minivmm.tracing.feed import Feed
from minivmm.tracing.scene import Scene
from minivmm.tracing.wish import Wish

INTERVAL = 0.1
"""Seconds in which events are gathered before they are written; a crash of ours loses so much."""

BATCH = 256
"""Lines of a write."""


class TraceFile(Closing):
    """What of the trace matches `patterns` (all, without any). `option` is where `path` is from.

    Opens `path` at once (it may be a pipe), and begins with `begin`. Raises HostError.

    `say` is called with a line for the user if the disk is full, once, and with one at the end.
    """

    def __init__(
        self,
        path: Path,
        say: Callable[[str], None],
        *,
        details: tuple[Detail, ...] = Wish.details,
        patterns: tuple[str, ...] = (),
        option: str = "--trace",
    ) -> None:
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise HostError(
                f"cannot write {path}: {error.strerror}: name another file with {option}"
            ) from None
        self._path = path
        self._say = say
        self._wish = Wish(details, patterns)
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._size = 0
        self._troubled = False
        self._feed: Feed | None = None

    def begin(self, scene: Scene, loop: EventLoop) -> None:
        """Record what happens from now on; without the lock."""
        self._loop = loop
        with loop.lock:
            self._feed = Feed(scene, self._wish, self._wake.set)
        self._thread = threading.Thread(target=self._write_all, name="trace", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what waits, for some seconds at most, and say what is missing."""
        if self._feed is not None:
            with self._loop.lock:
                self._feed.close()
            self._closing.set()
            self._wake.set()
            self._thread.join(5.0)
            if self._feed.lost:
                self._say(f"trace: {self._feed.lost} events are missing in {self._path}")
            if self._thread.is_alive():
                return  # in a write that hangs; it needs the descriptor
        os.close(self._fd)

    def _write_all(self) -> None:
        feed = self._feed
        assert feed is not None
        self._write(b"")
        last = False
        while not last:
            self._wake.wait()
            last = self._closing.wait(INTERVAL)
            self._wake.clear()
            while lines := feed.take(BATCH):
                text = "".join(f"{line}\n" for line in lines)
                if not self._write(text.encode()):
                    break  # until the next event, or the end: there may be room by then

    def _write(self, data: bytes) -> bool:
        """Append `data`, all of it or nothing; what is lost comes back as `dropped`."""
        assert self._feed is not None
        if not self._size:
            data = self._feed.header.encode() + b"\n" + data
        done = 0
        try:
            while done < len(data):
                done += os.write(self._fd, data[done:])
        except OSError as error:
            self._give_up(error, cut=done > 0)
            return False
        self._size += done
        return True

    def _give_up(self, error: OSError, *, cut: bool) -> None:
        assert self._feed is not None
        self._feed.lose()
        if cut:
            try:
                os.ftruncate(self._fd, self._size)
                os.lseek(self._fd, self._size, os.SEEK_SET)
            except OSError:
                pass  # a pipe: its reader has the half line
        if not self._troubled:
            self._troubled = True
            self._say(f"trace: cannot write {self._path}: {error.strerror}: events are left out")
