"""The guest's console between many: what it prints goes to all, what anybody types goes to it.

Where the bytes come from and go to on the host is console_server.py's matter, and the terminal's
of `minivmm boot`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from minivmm.loop import EventLoop

BACKLOG = 32 << 10
"""Bytes of output that are kept for those who come later."""


class Console(Protocol):
    """The guest's end: a serial port, or a port of the virtio console."""

    on_space: Callable[[], None]
    """Called when a `receive` that took less than it was offered may be repeated."""

    def receive(self, data: bytes) -> int:
        """Take the start of `data`; how many bytes."""


class Keyboard:
    """One of those who type, with the console's own face."""

    def __init__(self, hub: ConsoleHub) -> None:
        self.on_space: Callable[[], None] = lambda: None
        self._hub = hub

    def receive(self, data: bytes) -> int:
        """Keys for the guest (lock held); how many were taken."""
        return self._hub.receive(data)


class ConsoleHub:
    """One machine's console. Methods want the lock held."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._console: Console | None = None
        self._keyboards: list[Keyboard] = []
        self._watchers: list[Callable[[bytes], None]] = []
        self._backlog: deque[bytes] = deque()
        self._kept = 0
        self._pending = bytearray()

    def connect(self, console: Console) -> None:
        """Keys go to `console` from now on."""
        self._console = console
        console.on_space = self._offer_space

    def print(self, data: bytes) -> None:
        """The guest printed `data`; from any thread. Watchers get it soon, on the loop.

        A serial port gives single bytes: they are put together as long as the loop is busy.
        """
        if not self._pending:
            self._loop.call_soon(self._pass_on)
        self._pending += data

    def keyboard(self) -> Keyboard:
        """For one more who types; `drop` it when he leaves."""
        keyboard = Keyboard(self)
        self._keyboards.append(keyboard)
        return keyboard

    def drop(self, keyboard: Keyboard) -> None:
        """It types no more."""
        self._keyboards.remove(keyboard)

    def watch(self, watcher: Callable[[bytes], None]) -> Callable[[], None]:
        """Tell `watcher` of the latest output now, of all more on the loop; returns the un-watcher.

        It must not block.
        """
        self._pass_on()
        if self._backlog:
            watcher(_from_a_line(b"".join(self._backlog)))
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    def receive(self, data: bytes) -> int:
        """What Keyboards do; without a console nothing is taken."""
        return 0 if self._console is None else self._console.receive(data)

    def _offer_space(self) -> None:
        for keyboard in tuple(self._keyboards):
            keyboard.on_space()

    def _pass_on(self) -> None:
        """On the loop."""
        data = bytes(self._pending)
        self._pending.clear()
        if not data:
            return
        self._backlog.append(data)
        self._kept += len(data)
        while self._kept - len(self._backlog[0]) >= BACKLOG:
            self._kept -= len(self._backlog.popleft())
        for watcher in tuple(self._watchers):
            watcher(data)


def _from_a_line(data: bytes) -> bytes:
    """The last BACKLOG bytes of `data`, from the start of a line if something was cut."""
    if len(data) <= BACKLOG:
        return data
    data = data[-BACKLOG:]
    return data[data.find(b"\n") + 1 :]
