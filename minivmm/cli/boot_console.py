"""The console of `minivmm boot`: where output goes, the terminal's keys, and what escapes do."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable

from minivmm.cli.console_input import ConsoleInput
from minivmm.cli.monitor_prompt import MonitorPrompt
from minivmm.cli.output import Output
from minivmm.cli.terminal import HELP, RawTerminal, in_foreground
from minivmm.cli.text import say
from minivmm.control.console_hub import ConsoleHub
from minivmm.control.face import Context
from minivmm.loop import EventLoop
from minivmm.machine import Machine
from minivmm.units import format_size

TAIL = 40
TAIL_WIDTH = 1024
"""Lines of console output, and bytes of each, kept to be shown when a guest dies unseen."""

STDIN = 0


class BootConsole:
    """One boot's. `output` is where the guest's console is shown, None for nowhere."""

    def __init__(self, loop: EventLoop, output: Output | None, *, quiet: bool) -> None:
        self.hub = ConsoleHub(loop)
        self._loop = loop
        self._output = output
        self._quiet = quiet
        self._tail: deque[bytes] = deque(maxlen=TAIL)
        self._terminal = RawTerminal(STDIN)

    def print(self, data: bytes) -> None:
        """The guest printed `data`. Any thread, lock held."""
        self.hub.print(data)
        if self._output is not None:
            self._output.write(data)
        else:
            self._keep(data)

    def attach_terminal(self, context: Context, machine: Machine) -> None:
        """Standard input types: raw from a terminal, as it is from a pipe."""
        if not in_foreground(STDIN):
            return
        prompt = MonitorPrompt(lambda line: _monitor(context, line), _write)
        on_escape: Callable[[str], None] | None = None
        if os.isatty(STDIN):
            if not self._quiet:
                say("escape: Ctrl-A h")
            self._terminal.__enter__()
            on_escape = Escape(machine, prompt)
        with self._loop.lock:
            keyboard = self.hub.keyboard()
        ConsoleInput(STDIN, keyboard, self._loop, on_escape, prompt).start()

    def show_tail(self) -> None:
        """The last output, if nobody has seen it."""
        if self._tail:
            if not self._quiet:
                say("last lines of the guest's console:")
            sys.stderr.write(b"".join(self._tail).decode(errors="replace").replace("\r", ""))
            sys.stderr.write("" if self._tail[-1].endswith(b"\n") else "\n")
            sys.stderr.flush()

    def close(self) -> None:
        """Write what waits; the terminal as it was."""
        if self._output is not None:
            self._output.close()
        self._terminal.restore()

    def _keep(self, data: bytes) -> None:
        """Remember the last lines; the serial port gives single bytes."""
        last = self._tail[-1] if self._tail else b"\n"
        if not last.endswith(b"\n") and len(last) < TAIL_WIDTH:
            data = self._tail.pop() + data
        self._tail.append(data)


class Escape:
    """Does what follows Ctrl-A, lock held."""

    def __init__(self, machine: Machine, prompt: MonitorPrompt) -> None:
        self._machine = machine
        self._prompt = prompt

    def __call__(self, letter: str) -> None:
        """`letter` came."""
        if letter == "x":
            self._machine.request_quit()
        elif letter == "b":
            self._machine.send_break()
        elif letter == "c":
            self._prompt.toggle()
        elif letter == "s":
            say(self._status_line())
        elif letter == "h":
            _write(HELP + "\n")

    def _status_line(self) -> str:
        sizes = [
            f"{name} {format_size(device.plugged_size)}/{format_size(device.requested_size)}"
            for name, device in self._machine.board.memory_devices.items()
        ]
        return ", ".join([f"{self._machine.name} {self._machine.state}", *sizes])


def _monitor(context: Context, line: str) -> str:
    """The answer of the monitor, whose commands are loaded when somebody talks to it."""
    from minivmm.control.hmp import human_monitor_command

    return str(human_monitor_command(context, line))


def _write(text: str) -> None:
    """Ours, beside the guest's output."""
    sys.stderr.write(text)
    sys.stderr.flush()
