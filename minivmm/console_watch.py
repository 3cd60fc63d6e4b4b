"""Watches what the guest prints on its serial console for two events: init started, kernel panic.

A panic is recognised by its text because it works at every moment of a boot, needs no driver in
the guest, and brings the reason along.
"""

from __future__ import annotations

import re
from collections.abc import Callable

INIT_BANNER = b"minivmm: init"
"""First thing that our init prints (guest/init.sh)."""

_PANIC = re.compile(rb"Kernel panic - not syncing: ([^\r\n]*)")
_KEEP = 512


class ConsoleWatch:
    """Feed it console output; `panic` is the reason once a whole panic line was seen.

    Until init starts once more: then the panicked kernel has been replaced (kdump).
    """

    def __init__(self, on_panic: Callable[[], None], on_init: Callable[[], None]) -> None:
        self.panic: str | None = None
        self._on_panic = on_panic
        self._on_init = on_init
        self._line = b""

    def feed(self, data: bytes) -> None:
        """Look at `data`; lines may come in pieces of any size, and only their start is kept."""
        *lines, rest = (self._line + data).split(b"\n")
        self._line = rest[:_KEEP]
        for line in lines:
            self._look(line[:_KEEP])

    def reset(self) -> None:
        """The machine starts anew."""
        self._line = b""
        self.panic = None

    def _look(self, line: bytes) -> None:
        if INIT_BANNER in line:
            self.panic = None  # a crash kernel took over and made it: what follows is its own doing
            self._on_init()
        match = _PANIC.search(line)
        if match and self.panic is None:
            self.panic = match.group(1).decode("ascii", "replace")
            self._on_panic()
