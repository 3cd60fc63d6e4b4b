"""The user's terminal as the guest's console: raw mode, always undone, and the Ctrl-A escapes.

What an escape does is decided elsewhere; so is where bytes go.
"""

from __future__ import annotations

import atexit
import os
import termios
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

ESCAPE = 0x01
"""Ctrl-A."""

HELP = """\
Ctrl-A h  this help
Ctrl-A b  send a break (then a letter: Linux's sysrq)
Ctrl-A c  the monitor's prompt, or back to the console
Ctrl-A s  status of the VM
Ctrl-A x  end the VM
Ctrl-A Ctrl-A, Ctrl-A a  send Ctrl-A to the guest"""


class RawTerminal:
    """A context manager: terminal `fd` passes every key on unchanged; not a terminal: no effect.

    Output processing stays on, so that our own lines look right beside the guest's. The old mode
    comes back on leaving, and at the interpreter's exit if that never happens.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: list[Any] | None = None

    def __enter__(self) -> Self:
        if os.isatty(self._fd):
            self._saved = termios.tcgetattr(self._fd)
            atexit.register(self.restore)
            termios.tcsetattr(self._fd, termios.TCSANOW, raw_mode(self._saved))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.restore()

    def restore(self) -> None:
        """Back to the mode found; harmless when repeated."""
        if self._saved is not None:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)
            self._saved = None
            atexit.unregister(self.restore)


def raw_mode(mode: list[Any]) -> list[Any]:
    """`mode` (as tcgetattr gives it) without line editing, echo, signals and input translation."""
    iflag, oflag, cflag, lflag, ispeed, ospeed, cc = mode
    iflag &= ~(
        termios.BRKINT
        | termios.ICRNL
        | termios.IGNBRK
        | termios.IGNCR
        | termios.INLCR
        | termios.INPCK
        | termios.ISTRIP
        | termios.IXON
        | termios.PARMRK
    )
    lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN | termios.ISIG)
    cc = list(cc)
    cc[termios.VMIN], cc[termios.VTIME] = 1, 0
    return [
        iflag,
        oflag,
        cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8,
        lflag,
        ispeed,
        ospeed,
        cc,
    ]


def in_foreground(fd: int) -> bool:
    """False for a terminal that belongs to another job: touching it would stop this process."""
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return True  # not a terminal, or not our session's


class Escapes:
    """Tells keys for the guest from escapes, in input that comes in pieces of any size."""

    def __init__(self) -> None:
        self._escaped = False

    def feed(self, data: bytes) -> Iterator[tuple[str, bytes]]:
        """("", bytes for the guest) and (letter of an escape, b""), in order."""
        plain = bytearray()
        for byte in data:
            if not self._escaped:
                if byte == ESCAPE:
                    self._escaped = True
                else:
                    plain.append(byte)
                continue
            self._escaped = False
            if byte in (ESCAPE, ord("a")):
                plain.append(ESCAPE)
                continue
            if plain:
                yield "", bytes(plain)
                plain.clear()
            yield chr(byte), b""
        if plain:
            yield "", bytes(plain)
