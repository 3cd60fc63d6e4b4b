"""The host's end of the guest agent where QEMU has the ports: sockets of its character devices.

The agent, and what is said, are those of minivmm.control.agent; here a command at a time is run,
and its output kept. It never gets input.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Sequence

from minivmm.control import quoting
from minivmm.errors import GuestFailure, WaitTimeout
from minivmm.matrix.guest import Ran

OUTPUT, ERRORS = 1, 2
"""Numbers of the stream ports that a command's output goes to."""

PORTS = ("minivmm.control", f"minivmm.stream.{OUTPUT}", f"minivmm.stream.{ERRORS}")
"""Names of the ports that the guest must have; `sockets` are in this order."""


class QemuAgent:
    """Runs commands by the agent behind `sockets`, which are connected to the ports PORTS."""

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self.release = ""
        """The guest's kernel, as it said."""
        self._control, self._out, self._err = sockets
        self._line = bytearray()
        self._last = 0
        for one in sockets:
            one.setblocking(False)

    def wait_ready(self, timeout: float) -> None:
        """Return when an agent says that it has started. Raises WaitTimeout, GuestFailure."""
        end = time.monotonic() + timeout
        while True:
            match self._next_line(end):
                case ["ready", release]:
                    self.release = release
                    return
                case None:
                    raise WaitTimeout(f"the guest is not ready after {timeout:g} s")

    def run(self, command: str, timeout: float) -> Ran:
        """Run `command` by the guest's shell. Raises WaitTimeout, GuestFailure."""
        self._last += 1
        for stale in (self._out, self._err):
            _drain(stale, bytearray())
        script = quoting.encode(quoting.script(("sh", "-c", command), {}, None))
        self._control.setblocking(True)
        self._control.sendall(f"exec {self._last} - {OUTPUT} {ERRORS} {script}\n".encode())
        self._control.setblocking(False)
        output, errors = bytearray(), bytearray()
        status = self._await_exit(command, timeout, output, errors)
        _drain(self._out, output)  # the agent tells of the end when all of it was taken
        _drain(self._err, errors)
        return Ran(status, output.decode(errors="replace"), errors.decode(errors="replace"))

    def _await_exit(
        self, command: str, timeout: float, output: bytearray, errors: bytearray
    ) -> int:
        end = time.monotonic() + timeout
        while True:
            match self._next_line(end, (output, errors)):
                case ["exit", identifier, status] if identifier == str(self._last):
                    return int(status)
                case ["failed", identifier, *reason] if identifier == str(self._last):
                    raise GuestFailure(f"the guest could not start it: {' '.join(reason)}")
                case ["ready", _]:
                    raise GuestFailure(f"the guest started anew during {command[:60]!r}")
                case None:
                    raise WaitTimeout(f"{command[:60]!r} has not ended after {timeout:g} s")

    def _next_line(
        self, end: float, into: tuple[bytearray, bytearray] | None = None
    ) -> list[str] | None:
        """The words of the agent's next line; None if none comes until `end` (CLOCK_MONOTONIC)."""
        with selectors.DefaultSelector() as ready:
            ready.register(self._control, selectors.EVENT_READ, self._line)
            if into is not None:
                ready.register(self._out, selectors.EVENT_READ, into[0])
                ready.register(self._err, selectors.EVENT_READ, into[1])
            while (at := self._line.find(b"\n")) < 0:
                left = end - time.monotonic()
                if left <= 0:
                    return None
                for key, _ in ready.select(left):
                    found = key.fileobj
                    assert isinstance(found, socket.socket)
                    _drain(found, key.data)
        line = bytes(self._line[:at])
        del self._line[: at + 1]
        return line.decode("ascii", "replace").split(" ")


def _drain(source: socket.socket, into: bytearray) -> None:
    """Take what is there. Raises GuestFailure if the other side has gone."""
    while True:
        try:
            piece = source.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            raise GuestFailure(f"QEMU has ended ({error.strerror})") from error
        if not piece:
            raise GuestFailure("QEMU has ended")
        into += piece
