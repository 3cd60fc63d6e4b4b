"""What the outer machine prints: kept, so that an error message can name the cause.

QEMU, virtiofsd and the machine's serial console share one pipe.
"""

from __future__ import annotations

import os
import re
import select
import sys
import time

from minivmm.lab.loop import READ, Loop

KEPT = 64 * 1024
"""Bytes that are remembered."""

_DECORATION = re.compile(r"\x1b[\[(][0-9;?]*[A-Za-z]|\x1bc|^\[ *\d+\.\d+\] ", re.MULTILINE)
_PANIC = "Kernel panic"
_CAUSES = ("BUG: ", "Oops: ", "general protection fault", "kernel BUG ")
"""How the kernel begins to report a fault of its own, of which the panic is only the end."""
_NOISE = ("virtio_loop: ", "fv_queue_thread: ")
"""How virtiofsd begins to report that QEMU left, which is never the cause."""


class Console:
    """Reads the pipe `fd`, which it owns; with `verbose`, repeats it on stderr."""

    def __init__(self, loop: Loop, fd: int, *, verbose: bool = False) -> None:
        self._loop = loop
        self._fd = fd
        self._verbose = verbose
        self._text = bytearray()
        self._open = True
        os.set_blocking(fd, False)
        loop.watch(fd, READ, self._read)

    def last_words(self) -> str:
        """The line that most likely tells what went wrong."""
        text = _DECORATION.sub("", self._text.decode(errors="replace").replace("\r", ""))
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith(_NOISE)]
        for index, line in enumerate(lines):
            if line.startswith(_PANIC):
                faults = [line for line in lines[:index] if line.startswith(_CAUSES)]
                # Without a fault it was process 1 that died, after having said why.
                cause = faults[:1] or lines[:index][-1:]
                return "; ".join([*cause, line])
        return lines[-1] if lines else "it said nothing"

    def drain(self, seconds: float) -> None:
        """Read on until the writers are gone, at most `seconds`: they may be dying just now."""
        deadline = time.monotonic() + seconds
        while self._open and (left := deadline - time.monotonic()) > 0:
            if select.select([self._fd], [], [], left)[0]:
                self._read()

    def close(self) -> None:
        """Close the pipe."""
        self._loop.unwatch(self._fd)
        os.close(self._fd)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, KEPT)
        except BlockingIOError:
            return
        if not data:
            self._open = False
            self._loop.unwatch(self._fd)
        self._text += data
        del self._text[:-KEPT]
        if self._verbose:
            sys.stderr.buffer.write(data)
            sys.stderr.flush()
