"""`minivmm console`: one more terminal at the console of a running VM; any number at once."""

from __future__ import annotations

import argparse
import os
import select
import socket
import sys
from pathlib import Path

from minivmm import runtime
from minivmm.cli.monitor_prompt import MonitorPrompt
from minivmm.cli.terminal import Escapes, RawTerminal, in_foreground
from minivmm.cli.text import add_name, say
from minivmm.control.client import Client
from minivmm.errors import MinivmmError, NoSuchMachine

STDIN, STDOUT = 0, 1

LEAVE = 0x1D
"""Ctrl-]."""

HELP = """\
Ctrl-]    leave; the VM runs on
Ctrl-A h  this help
Ctrl-A b  send a break (then a letter: Linux's sysrq)
Ctrl-A c  the monitor's prompt, or back to the console
Ctrl-A s  status of the VM
Ctrl-A x  leave, as Ctrl-]
Ctrl-A Ctrl-A, Ctrl-A a  send Ctrl-A to the guest
"""

_READ_SIZE = 1 << 14


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_name(parser)
    parser.add_argument(
        "-r", "--read-only", action="store_true", help="only watch; nothing typed reaches the guest"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="nothing of ours on stderr")


def run(args: argparse.Namespace) -> int:
    """Until the user leaves, or the VM ends."""
    entry = runtime.find(args.name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(str(entry.console_socket))
        except OSError as error:
            raise NoSuchMachine(f"{entry.name} has no console ({error.strerror})") from None
        types = not args.read_only and sys.stdin is not None and in_foreground(STDIN)
        terminal = types and os.isatty(STDIN)
        if not args.quiet:
            how = "Ctrl-] leaves, Ctrl-A h helps" if terminal else "Ctrl-C leaves"
            say(f"console of {entry.name}: {how}")
        try:
            with RawTerminal(STDIN if terminal else -1):
                ended = _Session(entry.qmp_socket, connection, types=types, raw=terminal).run()
        except KeyboardInterrupt:
            ended = False  # how one leaves who is not raw
        if not args.quiet:
            # The guest's last line may not be over.
            sys.stderr.write("\n" if terminal else "")
            say(f"{entry.name} has ended" if ended else f"left {entry.name}; it runs on")
    return 0


class _Session:
    """Bytes from the terminal to the socket and back."""

    def __init__(self, qmp: Path, connection: socket.socket, *, types: bool, raw: bool) -> None:
        self._qmp = qmp
        self._connection = connection
        self._sources = [connection.fileno(), *([STDIN] if types else [])]
        self._raw = raw
        self._escapes = Escapes()
        self._prompt = MonitorPrompt(self._monitor, _write)
        self._pending = b""
        self._left = False

    def run(self) -> bool:
        """True if the VM has ended, False if the user has left."""
        connection = self._connection.fileno()
        self._connection.setblocking(False)
        while not self._left:
            # Keys are read only once the guest's side has taken the last ones.
            sources = self._sources if not self._pending else [connection]
            readable, writable, _ = select.select(
                sources, [connection] if self._pending else [], []
            )
            if writable:
                self._pending = self._pending[self._send(self._pending) :]
            if connection in readable and not self._receive():
                return True
            if STDIN in readable:
                self._read_keys()
        return False

    def _receive(self) -> bool:
        """Show what the guest printed; False at the end."""
        try:
            data = self._connection.recv(_READ_SIZE)
        except BlockingIOError:
            return True
        except OSError:
            return False
        while data:
            data = data[os.write(STDOUT, data) :]
            if not data:
                return True
        return False

    def _send(self, data: bytes) -> int:
        try:
            return self._connection.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)  # the VM has ended; reading will tell

    def _read_keys(self) -> None:
        keys = os.read(STDIN, _READ_SIZE)
        if not keys:
            self._sources.remove(STDIN)  # no more to type, but still to see
        elif not self._raw:
            self._pending += keys
        else:
            for escape, plain in self._escapes.feed(keys):
                if escape:
                    self._on_escape(escape)
                else:
                    self._type(plain)
                if self._left:
                    return

    def _type(self, keys: bytes) -> None:
        before, leave, _ = keys.partition(bytes((LEAVE,)))
        if self._prompt.open:
            self._prompt.feed(before)
        else:
            self._pending += before
        self._left = bool(leave)

    def _on_escape(self, letter: str) -> None:
        if letter in ("x", chr(LEAVE)):
            self._left = True
        elif letter == "h":
            _write(HELP)
        elif letter == "c":
            self._prompt.toggle()
        elif letter == "s":
            _write(self._monitor("info status"))
        elif letter == "b":
            self._ask("chardev-send-break", id="serial0")

    def _monitor(self, line: str) -> str:
        return str(self._ask("human-monitor-command", command_line=line)).replace("\r", "")

    def _ask(self, command: str, **arguments: object) -> object:
        """What the VM answers; what goes wrong, as text: the console goes on."""
        try:
            with Client(self._qmp) as client:
                return client.execute(command, **arguments)
        except MinivmmError as error:
            return f"{error}\n"


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
