"""The source's side: agree, send memory in rounds, stop the guest, hand it over.

It runs in a thread of its own, which takes the machine's lock for moments. Until RUN is sent the
machine is the source's: whatever fails before is undone, and the guest runs on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

from minivmm.errors import MigrationError
from minivmm.machine import Machine
from minivmm.migration import wire
from minivmm.migration.channel import Channel, PeerFailed
from minivmm.migration.progress import Parameters, Progress
from minivmm.migration.rounds import Rounds
from minivmm.migration.wire import Kind
from minivmm.snapshot.machine import describe, save_machine, save_memory_devices

LOAD_PATIENCE = 60.0
"""Seconds that a target may take to load devices or the machine."""

_LOOK = 0.02
"""Seconds between looks at something that nobody tells us about."""

Told = Callable[[str, dict[str, object]], None]


class Source:
    """One migration of `machine`; `tell` gets QMP events, with the lock held."""

    def __init__(
        self,
        machine: Machine,
        channel: Channel,
        parameters: Parameters,
        progress: Progress,
        cancelled: threading.Event,
        tell: Told,
    ) -> None:
        self.cancelled = cancelled
        """Set by whoever wants no more of it."""
        self.committed = False
        """RUN may have been sent: the machine is not the source's any more. Under the lock."""
        self._machine = machine
        self._lock = machine.loop.lock
        self._channel = channel
        self._progress = progress
        self._tell = tell
        self._state = ""
        """The machine's, before it was stopped."""
        self._rounds = Rounds(
            machine, channel, parameters, progress, wait=self._wait, on_round=self._tell_round
        )

    def migrate(self) -> None:
        """All of it; when it returns, the target has the machine. Raises MinivmmError or OSError.

        If `committed` then, nobody knows whether the target has it. Otherwise all is as before.
        """
        self._agree()
        with ExitStack() as undo:
            self._hold_blocks(undo)
            self._send_devices()
            undo.callback(self._rounds.end)
            self._rounds.begin()
            self._begin()
            self._rounds.send_all()
            self._rounds.send_dirty()
            self._stop(undo)
            self._send_machine()
            self._hand_over(undo)

    def _agree(self) -> None:
        """The target compares what it is with what we are, and answers before anything moves."""
        with self._lock:
            described = wire.build_json(describe(self._machine))
        self._channel.greet()
        self._channel.expect_greeting()
        self._channel.send(Kind.DESCRIPTION, described)
        self._channel.expect(Kind.READY)

    def _hold_blocks(self, undo: ExitStack) -> None:
        """From now on no block changes; what the host is at work on ends first."""
        devices = self._machine.memory_devices.values()
        undo.callback(self._release_blocks)
        with self._lock:
            for device in devices:
                device.migrating = True
        while True:
            with self._lock:
                if not any(device.at_work for device in devices):
                    return
            self._wait(_LOOK)

    def _release_blocks(self) -> None:
        """Drivers that were told BUSY are told to try again."""
        with self._lock:
            for device in self._machine.memory_devices.values():
                device.migrating = False
                if self._machine.outcome is None:
                    device.kick()

    def _send_devices(self) -> None:
        """What is plugged goes first, so that the target can say early that it has no room."""
        with self._lock:
            sections = save_memory_devices(self._machine)
        for section in sections:
            self._channel.send(Kind.SECTION, wire.build_section(section))
        self._channel.send(Kind.PLUGGED, wire.build_json({"plugged": self._plugged()}))
        self._channel.expect(Kind.READY, LOAD_PATIENCE)

    def _begin(self) -> None:
        with self._lock:
            self._look()  # or one that is being cancelled would be active again
            self._progress.ready = time.monotonic()
            self._progress.status = "active"
            self._tell("MIGRATION", {"status": "active"})

    def _stop(self, undo: ExitStack) -> None:
        """The guest stands still from here on."""
        still = threading.Event()
        with self._lock:
            self._machine.quiesce(still.set)
            undo.callback(self._go_on)
        self._progress.stopped = time.monotonic()
        while not still.is_set():
            self._wait(0.0)
            still.wait(_LOOK)

    def _go_on(self) -> None:
        """The machine is ours still: as it was before."""
        with self._lock:
            if self._machine.state == "finish-migrate":
                self._machine.state = self._state
                self._tell("RESUME", {})
            self._machine.unquiesce()

    def _send_machine(self) -> None:
        """What is left of memory, and the state of everything."""
        with self._lock:
            sections = save_machine(self._machine)
            self._state, self._machine.state = self._machine.state, "finish-migrate"
            self._tell("STOP", {})
        self._rounds.send_last()
        for section in sections:
            self._channel.send(Kind.SECTION, wire.build_section(section))
        end = {"sections": len(sections), "plugged": self._plugged()}
        self._channel.send(Kind.END, wire.build_json(end))
        self._progress.sent = self._channel.sent
        self._channel.expect(Kind.LOADED, LOAD_PATIENCE)

    def _hand_over(self, undo: ExitStack) -> None:
        """RUN: after it the machine does not run here again, unless the target says that it cannot.

        If nothing is heard of the target any more, it may run there or not: only people can tell.
        """
        with self._lock:
            self._look()
            self.committed = True
        try:
            self._channel.send(Kind.RUN)
        except MigrationError:  # so short a frame goes as a whole, or not at all
            self.committed = False
            raise
        try:
            self._channel.expect(Kind.RUNNING)
        except PeerFailed:
            self.committed = False
            raise
        except MigrationError:
            self._leave(undo)
            raise
        self._leave(undo)

    def _leave(self, undo: ExitStack) -> None:
        """The machine is not ours: it stands still here, in case that somebody says `cont`."""
        undo.pop_all()
        self._rounds.end()
        with self._lock:
            self._machine.state = "postmigrate"
            for device in self._machine.memory_devices.values():
                device.migrating = False
                device.kick()

    def _plugged(self) -> dict[str, int]:
        with self._lock:
            devices = self._machine.memory_devices
            return {name: device.plugged_size for name, device in devices.items()}

    def _wait(self, seconds: float) -> None:
        """Let some time pass. Raises MigrationError if there is nothing more to wait for."""
        self.cancelled.wait(seconds)
        self._look()

    def _look(self) -> None:
        """Raise MigrationError if it is over for a reason that is not the channel's."""
        if self.cancelled.is_set():
            raise MigrationError("the migration was cancelled")
        if self._machine.outcome is not None:
            raise MigrationError(f"the VM ended: {self._machine.outcome.reason}")
        self._channel.check()

    def _tell_round(self) -> None:
        with self._lock:
            self._tell("MIGRATION_PASS", {"pass": self._progress.rounds})
