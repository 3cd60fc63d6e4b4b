"""Keys and piped input on their way to the guest's console. What escapes do is given."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from minivmm.cli.monitor_prompt import MonitorPrompt
from minivmm.cli.signals import ignore_in_this_thread
from minivmm.cli.terminal import Escapes
from minivmm.control.console_hub import Console
from minivmm.loop import EventLoop

_READ_SIZE = 4096


class ConsoleInput:
    """Reads `fd` in a thread of its own; the guest gets it as fast as it takes it.

    `on_escape` (a Ctrl-A escape's letter, lock held) is for terminals; without it, input from
    files and pipes is passed on as it is. While `prompt` is open, keys are for that. The end of
    input means nothing: the guest goes on.
    """

    def __init__(
        self,
        fd: int,
        console: Console,
        loop: EventLoop,
        on_escape: Callable[[str], None] | None,
        prompt: MonitorPrompt | None = None,
    ) -> None:
        self._fd = fd
        self._console = console
        self._loop = loop
        self._on_escape = on_escape
        self._prompt = prompt
        self._escapes = Escapes()
        self._pending = b""
        self._room = threading.Event()
        self._room.set()
        console.on_space = lambda: loop.call_soon(self._pump)

    def start(self) -> None:
        """Begin reading; the thread dies with the process, as it may wait for a key forever."""
        threading.Thread(target=self._read, name="stdin", daemon=True).start()

    def _read(self) -> None:
        ignore_in_this_thread()
        while self._room.wait():
            try:
                data = os.read(self._fd, _READ_SIZE)
            except OSError:
                return
            if not data:
                return
            self._room.clear()
            self._loop.call_soon(lambda data=data: self._take(data))  # type: ignore[misc]

    def _take(self, data: bytes) -> None:
        if self._on_escape is None:
            self._pending += data
        else:
            for escape, plain in self._escapes.feed(data):
                if escape:
                    self._on_escape(escape)
                elif self._prompt is not None and self._prompt.open:
                    self._prompt.feed(plain)
                else:
                    self._pending += plain
        self._pump()

    def _pump(self) -> None:
        """Give the console what it takes; read on once it has all."""
        self._pending = self._pending[self._console.receive(self._pending) :]
        if not self._pending:
            self._room.set()
