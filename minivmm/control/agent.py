"""The host's end of the guest agent: readiness, and commands run over the console device's ports.

Protocol: a port carries text lines, every command gets two or three of the stream ports. Which
bytes a client on the host sends or sees is exec_server's matter.

    guest -> host    ready RELEASE | here RELEASE | exit ID STATUS | failed ID REASON
    host -> guest    hello | exec ID IN OUT ERR SCRIPT | kill ID SIGNAL | abandon | quit

An agent says ready when it starts, and here as its answer to hello. It kills all commands when it
is told to abandon them: the guest goes on in another process (a restored snapshot, a migration),
which has none of the clients that they were for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from minivmm.control import quoting
from minivmm.control.agent_session import Callbacks, Session
from minivmm.devices.virtio_console.device import CONTROL_PORT, VirtioConsole
from minivmm.devices.virtio_console.port import Port
from minivmm.errors import GuestFailure
from minivmm.trace import Trace

MAX_LINE = 4096
"""Bytes of lines taken from the guest at once; the agent writes them one by one."""

IDS_PER_LIFE = 1 << 20
"""Commands that can be told apart in each process that a guest goes through."""

SIGNAL_STATUS = 128
"""Exit status of a command that a signal ended: this plus the signal's number."""


class GuestAgent:
    """Runs commands in the guest. All methods run with the machine's lock held.

    `on_ready` holds callbacks for the moment the agent listens; they run with the lock held on any
    thread. A reset of guest or driver, or the agent's death, ends all sessions with an error.
    """

    def __init__(self, console: VirtioConsole, trace: Trace) -> None:
        self.ready = False
        self.kernel_release: str | None = None
        self.on_ready: list[Callable[[], None]] = []
        self._trace = trace
        self._control = console.ports[CONTROL_PORT]
        self._streams = console.ports[CONTROL_PORT + 1 :]
        self._line = bytearray()
        self._waiting: deque[Session] = deque()
        self._running: dict[int, Session] = {}
        self._last_id = 0
        self._console = console
        self._known = False
        """An agent may be there that said ready long ago."""
        console.on_restore = self._handle_restored
        self._control.on_data = self._handle_data
        self._control.on_guest_open = self._handle_control_open
        for port in self._streams:
            self._give_back(port)

    def run(
        self,
        argv: Sequence[str],
        callbacks: Callbacks,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: bool = False,
    ) -> Session:
        """Run `argv` in the guest, as soon as ports are free; without `stdin` it has /dev/null.

        Raises UsageError for commands that cannot be passed on, GuestFailure while not ready.
        """
        command = quoting.script(argv, env or {}, cwd)
        if not self.ready:
            raise GuestFailure("the guest agent is not ready: wait until the guest has booted")
        self._last_id += 1
        session = Session(
            self._last_id, command, stdin=stdin, callbacks=callbacks, send_kill=self._kill
        )
        self._waiting.append(session)
        self._start_waiting()
        return session

    def quit(self) -> None:
        """Have the guest sync its file systems and power off; nothing happens while not ready."""
        if self.ready:
            self._send("quit")

    def inspect(self) -> dict[str, object]:
        """Readiness, and the sessions that run or wait, by id."""
        return {
            "ready": self.ready,
            "kernel-release": self.kernel_release,
            "running": list(self._running),
            "waiting": [session.id for session in self._waiting],
        }

    # -- lines -------------------------------------------------------------------------------------

    def _send(self, line: str) -> None:
        self._control.send(line.encode("ascii") + b"\n")

    def _handle_data(self, data: bytes) -> None:
        if len(self._line) + len(data) > MAX_LINE:
            self._trace.emit("agent", "bad-line", size=len(self._line) + len(data))
            self._line.clear()
            return
        self._line += data
        *lines, rest = self._line.split(b"\n")
        self._line = bytearray(rest)
        for line in lines:
            self._handle_line(line.decode("ascii", errors="replace"))

    def _handle_line(self, line: str) -> None:
        match line.split(" ", 2):
            case ["ready", release]:
                self._handle_ready(release)
            case ["here", release]:
                if not self.ready:  # a new agent has said so by itself
                    self._handle_ready(release)
            case ["exit", identifier, status] if identifier.isdecimal() and status.isdecimal():
                self._handle_exit(int(identifier), int(status))
            case ["failed", identifier, *reason] if identifier.isdecimal():
                self._handle_failed(int(identifier), " ".join(reason))
            case _:
                self._trace.emit("agent", "bad-line", line=line)

    def _handle_ready(self, release: str) -> None:
        self._end_all()
        self.ready = self._known = True
        self.kernel_release = release
        self._trace.emit("agent", "ready", kernel=release)
        for callback in list(self.on_ready):
            callback()

    def _handle_exit(self, identifier: int, status: int) -> None:
        session = self._running.get(identifier)
        known = session is not None
        self._trace.emit("agent", "exit", session=identifier, status=status, known=known)
        if session is not None:
            session.finish(status & 0xFF)
            self._release(session)

    def _handle_failed(self, identifier: int, reason: str) -> None:
        session = self._running.get(identifier)
        self._trace.emit("agent", "failed", session=identifier, reason=reason)
        if session is not None:
            session.fail(GuestFailure(f"the guest could not start the command: {reason}"))
            self._release(session)

    def _handle_control_open(self, opened: bool) -> None:
        """The agent opened its port, died, or vanished with the guest or the driver."""
        self._line.clear()
        if opened and self._known:
            # This need not be a new agent: suspend and resume reset the driver, and the agent that
            # reads from it does not notice.
            self._send("hello")
        elif not opened:
            self.ready = False
            self._end_all()

    def _handle_restored(self) -> None:
        """The guest comes from another process, with an agent that may be running commands."""
        self._known = True
        self._last_id = self._console.lives * IDS_PER_LIFE
        for port in self._streams:
            port.discard()
        if self._control.guest_open:
            self._send("abandon")
            self._send("hello")

    # -- sessions and ports ------------------------------------------------------------------------

    def _start_waiting(self) -> None:
        """Start sessions, oldest first, while there are ports for the next one."""
        while self._waiting:
            taken = {port.id for session in self._running.values() for port in session.ports}
            free = [p for p in self._streams if p.id not in taken and not p.guest_open]
            if len(free) < self._waiting[0].ports_needed:
                return
            session = self._waiting.popleft()
            self._start(session, tuple(free[: session.ports_needed]))

    def _start(self, session: Session, ports: tuple[Port, ...]) -> None:
        self._running[session.id] = session
        session.start(ports)
        output, errors = ports[0].id, ports[1].id
        source = str(ports[2].id) if session.has_stdin else "-"
        script = quoting.encode(session.command)
        self._trace.emit("agent", "exec", session=session.id, ports=[port.id for port in ports])
        self._send(f"exec {session.id} {source} {output} {errors} {script}")

    def _kill(self, session: Session, signal: int) -> None:
        if session in self._waiting:
            self._waiting.remove(session)
            session.finish(SIGNAL_STATUS + signal)
            self._start_waiting()
        else:
            self._send(f"kill {session.id} {int(signal)}")

    def _release(self, session: Session) -> None:
        self._running.pop(session.id, None)
        for port in session.ports:
            self._give_back(port)
        self._start_waiting()

    def _give_back(self, port: Port) -> None:
        """A port without a session is free once the guest has closed it."""
        port.on_guest_open = lambda opened: None if opened else self._start_waiting()

    def _end_all(self) -> None:
        sessions = [*self._running.values(), *self._waiting]
        self._waiting.clear()
        for session in sessions:
            session.fail(
                GuestFailure("the guest agent went away before the command ended: guest reset?")
            )
            self._release(session)
