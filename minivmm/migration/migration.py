"""Migration: what a machine's owner and its QMP clients steer: go, come, how far, stop it.

Each migration runs in a thread of its own; the machine's loop is never kept waiting.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from minivmm.errors import MigrationError, MinivmmError, Refused, UsageError
from minivmm.machine import Machine
from minivmm.migration.channel import Channel
from minivmm.migration.progress import Parameters, Progress, Status
from minivmm.migration.source import Source
from minivmm.migration.states import refuse_unless_movable
from minivmm.migration.target import Target
from minivmm.migration.transport import Address, Listener, connect, parse_uri
from minivmm.vcpu import blame

_GRACE = 1.0
"""Seconds in which a migration that is cancelled may end by itself, so that it can say why."""


class Migration:
    """That of one machine. Methods want the lock held, but for `close`, which wants it not."""

    def __init__(self, machine: Machine) -> None:
        self.parameters = Parameters()
        self.progress = Progress()
        """Of the last migration, or of the one that is under way."""
        self._machine = machine
        self._lock = machine.loop.lock
        self._thread: threading.Thread | None = None
        self._source: Source | None = None
        self._link: Channel | Listener | None = None
        self._cancelled = threading.Event()
        self._closed = False
        machine.on_end.append(lambda _: self._abort())

    def start(self, uri: str) -> None:
        """Begin to move the machine to `uri`. Raises Refused or UsageError."""
        address = parse_uri(uri)
        if not self.progress.over:
            raise Refused("There's a migration process in progress")
        refuse_unless_movable(self._machine.state)
        if self._machine.spec.bound_by:
            raise Refused(self._machine.spec.bound_by)
        if self._machine.debugger.attached:
            raise Refused("a debugger is attached, and may have changed guest code: detach it")
        self._begin(lambda cancelled: self._go(address, cancelled))

    def expect(
        self, uri: str, done: Callable[[MinivmmError | None], None], *, frozen: bool = False
    ) -> str:
        """Wait for a source at `uri`; returns where it may come to.

        The machine, built empty and not started, is "inmigrate" until it goes on as it did there;
        paused if `frozen`. `done` is told once, on the loop with the lock held: None, or what went
        wrong, after which the machine is of no use. Raises UsageError or HostError.
        """
        if self._machine.spec.bound_by:
            raise UsageError(self._machine.spec.bound_by)
        listener = Listener(parse_uri(uri))
        place = listener.place
        self._link = listener
        self._machine.state = "inmigrate"
        self._begin(lambda _: self._come(listener, done, frozen))
        return place

    def cancel(self) -> None:
        """Give up an outgoing migration, unless the machine has been handed over."""
        progress, handed_over = self.progress, self._source is not None and self._source.committed
        if progress.over or handed_over or self._machine.state == "inmigrate":
            return
        self._tell_status("cancelling")
        self._cancelled.set()
        self._machine.later(_GRACE, lambda: self._abort() if self.progress is progress else None)

    def close(self) -> None:
        """Give up whatever is under way, and return when nothing of it goes on."""
        with self._lock:
            self._closed = True
            self._abort()
            # One that is not connected yet has touched nothing, and will not.
            thread = self._thread if self._link is not None else None
        if thread is not None:
            thread.join()

    def _begin(self, work: Callable[[threading.Event], None]) -> None:
        self.progress = Progress()
        self._tell_status("setup")
        self._cancelled = threading.Event()
        self._thread = threading.Thread(
            target=work, args=(self._cancelled,), name="migration", daemon=True
        )
        self._thread.start()

    def _abort(self) -> None:
        """Break the connection, unless there is no need to."""
        if self._source is not None and self._source.committed and not self._closed:
            return
        if not self.progress.over:
            self._cancelled.set()
            if self._link is not None:
                self._link.abort()

    # -- to another process ------------------------------------------------------------------------

    def _go(self, address: Address, cancelled: threading.Event) -> None:
        """The thread of an outgoing migration."""
        source: Source | None = None
        error: MinivmmError | None = None
        try:
            with connect(address) as channel:
                source = self._connected(channel, cancelled)
                try:
                    source.migrate()
                except Exception as failure:
                    if not source.committed:
                        channel.fail(blame(failure))
                    raise
        except Exception as failure:  # even a bug of ours must not leave the guest stopped
            error = failure if isinstance(failure, MinivmmError) else MigrationError(blame(failure))
        with self._lock:
            self._source = self._link = None
            if error is None:
                self._end("completed")
            elif source is not None and source.committed:
                self._end(
                    "failed",
                    f"the VM was handed over, but then {error}: look whether it runs there, and"
                    " only if it does not, `cont` lets it run on here",
                )
            else:
                self._end("cancelled" if cancelled.is_set() else "failed", str(error))

    def _connected(self, channel: Channel, cancelled: threading.Event) -> Source:
        with self._lock:
            if cancelled.is_set() or self._closed:
                raise MigrationError("the migration was cancelled")
            source = Source(
                self._machine, channel, self.parameters, self.progress, cancelled, self._tell
            )
            self._link, self._source = channel, source
        return source

    # -- into this process -------------------------------------------------------------------------

    def _come(
        self, listener: Listener, done: Callable[[MinivmmError | None], None], frozen: bool
    ) -> None:
        """The thread of an incoming migration."""
        error: MinivmmError | None = None
        try:
            with listener, listener.accept() as channel:
                with self._lock:
                    if self._cancelled.is_set():
                        raise MigrationError("the migration was cancelled")
                    self._link = channel
                target = Target(self._machine, channel, self.progress)
                target.receive(lambda: self._take_over(frozen))
        except Exception as failure:
            error = failure if isinstance(failure, MinivmmError) else MigrationError(blame(failure))
        with self._lock:
            self._link = None
            self._end("completed" if error is None else "failed", str(error or ""))
        self._machine.loop.call_soon(lambda: done(error))

    def _take_over(self, frozen: bool) -> None:
        """The machine is ours: it goes on as it was, and drivers that got BUSY try again."""
        if self._machine.outcome is not None or self._closed:
            raise MigrationError("the VM was ended before it came")
        self._machine.state = "prelaunch"
        self._machine.start(frozen=frozen)
        for device in self._machine.memory_devices.values():
            device.kick()

    # ----------------------------------------------------------------------------------------------

    def _end(self, status: Status, error: str = "") -> None:
        self.progress.end(status, error)
        self._tell("MIGRATION", {"status": status})
        if error:
            self._machine.trace.emit("machine", "migration", status=status, why=error)

    def _tell_status(self, status: Status) -> None:
        self.progress.status = status
        self._tell("MIGRATION", {"status": status})

    def _tell(self, event: str, data: dict[str, object]) -> None:
        if not self._closed:
            for listener in tuple(self._machine.on_event):
                listener(event, data)
