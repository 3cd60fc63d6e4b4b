"""The monitor's prompt on a console (Ctrl-A c): a line editor of the smallest kind.

What a line does is given; QEMU's monitor commands are control/hmp.py's.
"""

from __future__ import annotations

from collections.abc import Callable

PROMPT = "(minivmm) "

_ENTER = b"\r\n"
_ERASE = b"\x7f\x08"
_KILL_LINE = 0x15
_LEAVE = 0x04


class MonitorPrompt:
    """While it is open, keys are for it. `run` gives the text that a line prints."""

    def __init__(self, run: Callable[[str], str], write: Callable[[str], None]) -> None:
        self.open = False
        self._run = run
        self._write = write
        self._line = bytearray()

    def toggle(self) -> None:
        """Open or close it."""
        self.open = not self.open
        self._line.clear()
        if self.open:
            self._write(f"\nmonitor: `help` lists commands, Ctrl-A c goes back\n{PROMPT}")
        else:
            self._write("\n")

    def feed(self, keys: bytes) -> None:
        """Take `keys`: text, Enter, Backspace, Ctrl-U, and Ctrl-D to close it."""
        for key in keys:
            if not self.open:
                return
            if key in _ENTER:
                self._enter()
            elif key in _ERASE:
                self._erase(1)
            elif key == _KILL_LINE:
                self._erase(len(self._line))
            elif key == _LEAVE:
                self.toggle()
            elif 0x20 <= key < 0x7F:
                self._line.append(key)
                self._write(chr(key))

    def _enter(self) -> None:
        line = self._line.decode()
        self._line.clear()
        self._write("\n")
        text = self._run(line).replace("\r", "") if line.strip() else ""
        if text and not text.endswith("\n"):
            text += "\n"
        self._write(text + PROMPT)

    def _erase(self, count: int) -> None:
        count = min(count, len(self._line))
        del self._line[len(self._line) - count :]
        self._write("\b \b" * count)
