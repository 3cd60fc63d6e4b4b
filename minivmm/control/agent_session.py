"""One command that runs in the guest: its streams over three ports, from start to exit status.

The agent decides when a session starts, which ports it gets and when it ends (agent.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from minivmm.devices.virtio_console.port import Port
from minivmm.errors import MinivmmError

HANDSHAKE = b"."
"""What the guest writes to its stdin port when it has opened it."""


def _ignore(_: object) -> None:
    """For ports and callbacks that nobody listens to."""


@dataclass(frozen=True)
class Callbacks:
    """What a session tells its owner; called with the machine's lock held, on any thread.

    They must not raise or block. Exactly one of on_exit and on_failed is called, and last.
    """

    on_stdout: Callable[[bytes], None]
    on_stderr: Callable[[bytes], None]
    on_exit: Callable[[int], None]
    """The command's exit status, 0..255; 128 + number for signals."""
    on_failed: Callable[[MinivmmError], None]
    """The command did not run, or nobody will ever know how it ended."""
    on_stdin_taken: Callable[[int], None] = _ignore
    """So many bytes of write_stdin left our memory; for owners who limit what is under way."""


class Session:
    """A command under way. All methods run with the machine's lock held and never block."""

    def __init__(
        self,
        identifier: int,
        command: bytes,
        *,
        stdin: bool,
        callbacks: Callbacks,
        send_kill: Callable[[Session, int], None],
    ) -> None:
        self.id = identifier
        self.command = command
        self.has_stdin = stdin
        self.ports: tuple[Port, ...] = ()
        self._callbacks = callbacks
        self._send_kill = send_kill
        self._ended = False
        self._early: list[bytes] = []
        self._reader_ready = False
        self._reader_gone = False
        self._eof = False
        self._untaken = 0

    # -- the owner's side --------------------------------------------------------------------------

    def write_stdin(self, data: bytes) -> None:
        """Give `data` to the command; ignored once stdin is closed or the session has ended."""
        if self._ended or self._eof or not self.has_stdin or not data:
            return
        self._untaken += len(data)
        if self._reader_gone:
            self._taken(len(data))
        elif self._reader_ready:
            self.ports[2].send(data)
        else:
            self._early.append(data)

    def close_stdin(self) -> None:
        """End of file for the command, behind all data written before."""
        self._eof = True
        self._close_when_drained()

    def kill(self, signal: int) -> None:
        """Send `signal` (number) to the command's process group; a waiting one never starts."""
        if not self._ended:
            self._send_kill(self, signal)

    def set_throttled(self, throttled: bool) -> None:
        """While throttled, output stays in the guest and the command's writes block.

        Without effect once the command has ended: what is left by then is at most two queues full.
        """
        if self.ports and not self._ended:
            for port in self.ports[:2]:
                port.set_throttled(throttled)

    # -- the agent's side --------------------------------------------------------------------------

    @property
    def ports_needed(self) -> int:
        """How many ports the session takes: stdout, stderr, and stdin if it has one."""
        return 3 if self.has_stdin else 2

    def start(self, ports: tuple[Port, ...]) -> None:
        """Take over `ports`: stdout, stderr and, if needed, stdin."""
        self.ports = ports
        for port in ports:
            port.set_host_open(True)
        ports[0].on_data = self._callbacks.on_stdout
        ports[1].on_data = self._callbacks.on_stderr
        if self.has_stdin:
            ports[2].on_data = self._handle_handshake
            ports[2].on_taken = self._taken
            ports[2].on_drained = self._close_when_drained
            ports[2].on_guest_open = self._handle_reader

    def finish(self, status: int) -> None:
        """The command ended: deliver what it wrote before that, then its status."""
        if self._ended:
            return
        self._ended = True  # from here on the owner cannot throttle
        for port in self.ports[:2]:
            port.set_throttled(False)
        self._let_go()
        self._callbacks.on_exit(status)

    def fail(self, error: MinivmmError) -> None:
        """End without a status."""
        if self._ended:
            return
        self._ended = True
        self._let_go()
        self._callbacks.on_failed(error)

    # -- stdin -------------------------------------------------------------------------------------

    def _handle_handshake(self, data: bytes) -> None:
        """The guest has stdin open, and sees the host's end open: input may flow."""
        if self._reader_ready or not data.startswith(HANDSHAKE):
            return
        self._reader_ready = True
        early, self._early = self._early, []
        for piece in early:
            self.ports[2].send(piece)
        self._close_when_drained()

    def _handle_reader(self, opened: bool) -> None:
        """The guest opened or closed stdin; without a reader all input counts as taken."""
        if not opened:
            self._reader_gone = True
            self._early.clear()
            self._taken(self._untaken)

    def _close_when_drained(self) -> None:
        """End of file, once the guest's reader has consumed all data.

        Closing earlier would lose data: Linux's read looks for data first and for the host's end
        second, and data may arrive between the two.
        """
        if self._eof and self._reader_ready and not self._ended and self.ports[2].drained:
            self.ports[2].set_host_open(False)

    def _taken(self, count: int) -> None:
        if count:
            self._untaken -= count
            self._callbacks.on_stdin_taken(count)

    def _let_go(self) -> None:
        """Give the ports back in a state in which leftovers of the guest go nowhere."""
        for port in self.ports:
            port.on_data = port.on_taken = port.on_guest_open = _ignore
            port.on_drained = lambda: None
            port.discard()
            port.set_throttled(False)
