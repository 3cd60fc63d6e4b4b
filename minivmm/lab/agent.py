"""The lab machine's only process of its own: runs commands and connects sockets for the host.

It is process 1 inside, started by init.sh. If it ends, the kernel panics and QEMU with it, which
is how the machine goes away when the host's end of the wire is lost.

The host opens a channel with Kind.OPEN and a JSON object, one of
    {"run": [ARG...], "env": {..}, "cwd": DIR, "terminal": [FD...], "rows": N, "columns": N}
    {"connect": PATH, "patience": SECONDS}
`terminal` lists which of 0, 1, 2 are one pseudo terminal; the others are pipes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import sys
import termios
import time
from typing import TYPE_CHECKING, Any, NoReturn

from minivmm.frames import Frame, Kind
from minivmm.lab.loop import Loop
from minivmm.lab.streams import CREDIT, Sink, Source, Wire, json_frame, json_payload

if TYPE_CHECKING:
    from minivmm.lab.relay import Relay

HELLO = 0
"""Channel on which the agent says that it listens; the host counts its own from 1."""
RETRY = 0.1
"""Seconds between two tries to connect to a socket that is not there yet."""
END_OF_INPUT = b"\x04"
"""What a terminal takes for the end of its input (Ctrl-D)."""
DEFAULT_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD)
"""Signals that Python ignores or we handle; a command starts with none of that."""


class Agent:
    """Serves one wire: `wire` is the descriptor of the serial port, or of a socket in tests."""

    def __init__(self, wire: int) -> None:
        self.loop = Loop()
        self.wire = Wire(self.loop, wire, self._on_frame, self._on_end)
        self.running = True
        self._commands: dict[int, Command] = {}
        self._channels: dict[int, Command | Relay | Connecting] = {}
        self.wire.send(json_frame(HELLO, Kind.OPEN, {"release": os.uname().release}))

    def serve(self) -> None:
        """Work until the host's end of the wire closes. Reaps every child of this process."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.loop.wake_fd, warn_on_full_buffer=False)
        while self.running:
            waiting = any(isinstance(channel, Connecting) for channel in self._channels.values())
            self.loop.step(RETRY if waiting else None)
            self._reap()
            for channel, at in list(self._channels.items()):
                if isinstance(at, Connecting):
                    self._try_connect(channel, at)

    def _on_frame(self, frame: Frame) -> None:
        if frame.kind is Kind.OPEN:
            self._open(frame.channel, json_payload(frame))
        elif frame.channel in self._channels:  # else it is over and the host did not know yet
            self._channels[frame.channel].receive(frame)

    def _on_end(self) -> None:
        self.running = False

    def _open(self, channel: int, request: dict[str, Any]) -> None:
        if "connect" in request:
            self._try_connect(channel, Connecting(request["connect"], request["patience"]))
            return
        try:
            command = Command(self.wire, channel, request)
        except OSError as error:
            self._fail(channel, f"cannot start a process in the lab: {error.strerror}")
            return
        self._commands[command.pid] = command
        self._channels[channel] = command

    def _reap(self) -> None:
        """Collect all processes that ended: commands, and orphans, whose parent is process 1."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid in self._commands:
                self._commands.pop(pid).exited(os.waitstatus_to_exitcode(status))
        for channel, command in list(self._channels.items()):
            if isinstance(command, Command) and command.over:
                del self._channels[channel]

    def _try_connect(self, channel: int, attempt: Connecting) -> None:
        self._channels[channel] = attempt
        # Most labs connect to nothing, and these take half a second to import in here.
        import socket

        from minivmm.lab.relay import Relay

        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            connection.connect(attempt.path)
        except OSError as error:
            connection.close()
            if attempt.cancelled or time.monotonic() >= attempt.until:
                del self._channels[channel]
                self._fail(channel, f"{attempt.path}: {error.strerror}")
            return
        relay = Relay(
            self.wire,
            channel,
            connection,
            sends=Kind.STDOUT,
            takes=Kind.STDIN,
            on_end=lambda: self._forget(channel),
        )
        self._channels[channel] = relay
        for frame in attempt.early:
            relay.receive(frame)

    def _forget(self, channel: int) -> None:
        self._channels.pop(channel, None)

    def _fail(self, channel: int, why: str) -> None:
        self.wire.send(json_frame(channel, Kind.FAILED, {"error": why}))


class Connecting:
    """A channel whose socket does not listen yet; keeps what the host sends (at most WINDOW)."""

    def __init__(self, path: str, patience: float) -> None:
        self.path = path
        self.until = time.monotonic() + patience
        self.early: list[Frame] = []
        self.cancelled = False

    def receive(self, frame: Frame) -> None:
        """Keep a frame for later; a host that stopped reading ends the attempt."""
        self.early.append(frame)
        self.cancelled = self.cancelled or frame.kind in (Kind.STOP, Kind.FAILED)


class Command:
    """One process, leader of its own session, and its streams. Raises OSError if fork fails."""

    def __init__(self, wire: Wire, channel: int, request: dict[str, Any]) -> None:
        self._wire = wire
        self._channel = channel
        self._terminal: list[int] = request["terminal"]
        self._status: int | None = None
        self.over = False
        """True once the host has the status."""
        ours, theirs, self._master = _make_streams(request)
        self.pid = os.fork()
        if self.pid == 0:
            _become(request, theirs)
        for fd in set(theirs):
            os.close(fd)
        self._stdin = Sink(wire, channel, Kind.STDIN, ours[0])
        self._sources = {
            kind: Source(wire, channel, kind, ours[number], self._check_end)
            for kind, number in ((Kind.STDOUT, 1), (Kind.STDERR, 2))
            if number in ours
        }

    def receive(self, frame: Frame) -> None:
        """Take a frame of this channel."""
        match frame.kind:
            case Kind.STDIN:
                self._stdin.feed(frame.payload)
            case Kind.STDIN_EOF:
                if 0 in self._terminal:
                    self._stdin.feed(END_OF_INPUT)
                else:
                    self._stdin.finish()
            case Kind.SIGNAL:
                self._signal(json_payload(frame)["signal"])
            case Kind.RESIZE if self._master is not None:
                size = json_payload(frame)
                _set_window_size(self._master, size["rows"], size["columns"])
            case Kind.CREDIT:
                kind, count = CREDIT.unpack(frame.payload)
                self._sources[Kind(kind)].grant(count)
            case Kind.STOP:
                self._sources[Kind(frame.payload[0])].stop()

    def exited(self, code: int) -> None:
        """The process ended: with status `code`, or by signal -`code`. Send what it left behind."""
        self._status = code if code >= 0 else 128 - code
        self._stdin.abandon()
        for source in self._sources.values():
            source.expire()
        self._check_end()

    def _signal(self, number: int) -> None:
        """Signal the whole process group, as a terminal does; pass over one that is gone."""
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):  # it just ended
                try:
                    os.killpg(self.pid, number)
                except ProcessLookupError:
                    os.kill(self.pid, number)  # it has not come to its setsid yet

    def _check_end(self) -> None:
        if self._status is None or self.over:
            return
        if all(source.ended for source in self._sources.values()):
            self.over = True
            if self._master is not None:
                os.close(self._master)
            self._wire.send(json_frame(self._channel, Kind.EXIT, {"status": self._status}))


def _make_streams(request: dict[str, Any]) -> tuple[dict[int, int], list[int], int | None]:
    """Our end of each of the command's descriptors, its own three, and a spare end of the pty.

    Ours do not block. If stdout and stderr are both the terminal, its output comes as stdout.
    """
    terminal: list[int] = request["terminal"]
    master = slave = None
    if terminal:
        master, slave = os.openpty()
        _set_window_size(master, request["rows"], request["columns"])
    ours: dict[int, int] = {}
    theirs: list[int] = []
    for number in range(3):
        if number in terminal and master is not None and slave is not None:
            theirs.append(slave)
            if number != 2 or 1 not in terminal:
                ours[number] = os.dup(master)
        else:
            read_end, write_end = os.pipe()
            ours[number] = write_end if number == 0 else read_end
            theirs.append(read_end if number == 0 else write_end)
    for fd in ours.values():
        os.set_blocking(fd, False)
    return ours, theirs, master


def _become(request: dict[str, Any], fds: list[int]) -> NoReturn:
    """In the new process: turn into the command. Failures end as a shell's: 127 and 126."""
    argv: list[str] = request["run"]
    try:
        os.setsid()
        if 0 in request["terminal"]:
            fcntl.ioctl(fds[0], termios.TIOCSCTTY, 0)
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
        for number in DEFAULT_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        os.chdir(request["cwd"])
        os.execvpe(argv[0], argv, request["env"])
    except (OSError, ValueError) as error:
        line = f"minivmm: cannot run {argv[0]!r} in the lab: {error}\n"
        os.write(2, line.encode(errors="replace"))
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)
    finally:
        os._exit(126)


def _set_window_size(fd: int, rows: int, columns: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("<HHHH", rows, columns, 0, 0))


def main(port: str) -> None:
    """Serve the host over the serial port whose device is `port`, until it goes away."""
    Agent(os.open(port, os.O_RDWR)).serve()
    sys.exit("minivmm: the host is gone")
