"""Boots a machine in this process: sockets, console, command, signals; and cleans up after it.

    claim directory -> resolve kernel and initrd -> build machine -> serve until the end -> clean up

The first of these ends it: the machine itself, the command, --timeout, Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from minivmm import runtime
from minivmm.accel import open_system, probe
from minivmm.cli.boot import BootOptions
from minivmm.cli.boot_console import BootConsole
from minivmm.cli.boot_files import misbehaving, open_traces
from minivmm.cli.ending import recorded
from minivmm.cli.output import Output
from minivmm.cli.signals import ENDING, HeldSignals, ignore_in_this_thread
from minivmm.cli.text import SCHEMA, say
from minivmm.control.face import Context
from minivmm.control.readiness import LAST_WORDS, READY_TIMEOUT
from minivmm.control.servers import Servers
from minivmm.errors import (
    GuestFailure,
    HostError,
    Interrupted,
    MinivmmError,
    Timeout,
    WaitTimeout,
)
from minivmm.guest_image import GuestImage, resolve
from minivmm.loop import EventLoop
from minivmm.machine import Machine, Outcome
from minivmm.machine_spec import MachineSpec, spec_to_json

if TYPE_CHECKING:
    from minivmm.control.gdb_server import GdbServer
    from minivmm.tracing.file import TraceFile

Image = GuestImage | Callable[[], GuestImage]

POWERDOWN_GRACE = 10.0
"""Seconds that a guest may take to power off when we are told to end."""

STDIN, STDOUT, STDERR = 0, 1, 2


def boot_here(spec: MachineSpec, options: BootOptions) -> int:
    """Boot `spec` on this host's /dev/kvm; returns the exit status. Raises MinivmmError.

    Tracebacks, ours and asyncio's, are for --debug: without it, one line says what went wrong.
    """
    before = logging.root.manager.disable
    logging.disable(logging.NOTSET if options.debug else logging.CRITICAL)
    try:
        return recorded(options.status, lambda: _boot(spec, options))
    finally:
        logging.disable(before)


def _boot(spec: MachineSpec, options: BootOptions) -> int:
    with HeldSignals() as signals, contextlib.ExitStack() as owned:
        directory = runtime.claim(spec.name or runtime.free_name())
        try:
            with signals.allowed():
                spec = dataclasses.replace(spec, name=directory.name)
                directory.spec_file.write_text(json.dumps(spec_to_json(spec)) + "\n")
                resolved = partial(resolve, spec, shell=not options.command)
                # A restored guest needs none before it resets.
                image: Image = resolved if options.restore is not None else resolved()
                traces = [owned.enter_context(one) for one in open_traces(spec, options)]
            # asyncio cannot be interrupted while it makes its loop, or takes it down.
            return asyncio.run(_Run(spec, options, directory, image, traces).run(signals))
        finally:
            directory.remove()


class _Run:
    """One boot. Methods run on the loop's thread unless they say otherwise."""

    def __init__(
        self,
        spec: MachineSpec,
        options: BootOptions,
        directory: runtime.MachineDir,
        image: Image,
        traces: list[TraceFile],
    ) -> None:
        self._spec = spec
        self._options = options
        self._directory = directory
        self._image = image
        self._traces = traces
        self._signals = 0

    async def run(self, signals: HeldSignals) -> int:
        """Boot and wait for the end. Raises MinivmmError for every end but an orderly one."""
        running = asyncio.get_running_loop()
        self._loop = EventLoop(running)
        self._finished: asyncio.Future[int] = running.create_future()
        for number in ENDING:
            running.add_signal_handler(number, self._on_signal, number)
        with signals.allowed():
            return await self._run()

    async def _run(self) -> int:
        """Everything from opening /dev/kvm to closing it."""
        quiet = self._options.quiet
        self._console = BootConsole(self._loop, self._open_console(), quiet=quiet)
        self._system = system = open_system()
        try:
            self._machine = Machine(
                self._spec,
                self._image,
                system,
                self._loop,
                console=self._console.print,
                empty=self._options.incoming is not None or self._options.restore is not None,
            )
            try:
                self._restore()
                with misbehaving(self._options.scenario, self._machine):
                    return await self._serve()
            finally:
                self._machine.close()
                self._report_stats()
        finally:
            system.close()
            self._console.close()
            self._directory.remove()

    def _restore(self) -> None:
        """Have the machine be the one in a snapshot, if that was asked for."""
        if self._options.restore is not None:
            from minivmm.snapshot.restored import load

            with self._loop.lock:
                load(self._options.restore, self._machine)

    async def _serve(self) -> int:
        """Sockets up, guest running, until something ends it."""
        machine = self._machine
        servers = Servers(machine, self._console.hub, self._loop)
        self._agent = servers.agent
        machine.on_warning.append(lambda line: self._loop.call_soon(lambda: say(line)))
        for line in machine.board.address_map.warnings():
            say(line)
        machine.on_end.append(lambda outcome: self._loop.call_soon(lambda: self._on_end(outcome)))
        for trace in self._traces:
            trace.begin(servers.scene, self._loop)
        viewers = contextlib.ExitStack()
        gdb: GdbServer | None = None
        try:
            await servers.start(self._directory)
            if self._options.qmp is not None:
                await servers.qmp.start(self._options.qmp)
            if self._options.ui is not None:
                from minivmm.cli.viewer import Viewer

                viewers.enter_context(Viewer(self._machine.name, self._options.ui))
            if self._options.timeout is not None:
                self._loop.call_later(self._options.timeout, self._on_timeout)
            with self._loop.lock:
                self._start(servers)
            gdb = await self._open_gdb(servers.context)
            if self._options.command:
                threading.Thread(target=self._run_command, name="command", daemon=True).start()
            else:
                self._console.attach_terminal(servers.context, machine)
            return await self._finished
        finally:
            await servers.close()
            if gdb is not None:
                await gdb.close()
            viewers.close()

    def _start(self, servers: Servers) -> None:
        """Have the guest run, now or when it comes."""
        options = self._options
        if options.incoming is None:
            self._machine.start(frozen=options.freeze or options.gdb is not None)
            return
        arrival = self._on_arrival
        place = servers.migration.expect(options.incoming, arrival, frozen=options.freeze)
        self._notice(f"waiting for a VM to come: minivmm migrate NAME {place}")

    def _on_arrival(self, error: MinivmmError | None) -> None:
        if error is None:
            self._notice("the VM has come, and runs here now")
        else:
            self._finish(error)

    async def _open_gdb(self, context: Context) -> GdbServer | None:
        if self._options.gdb is None:
            return None
        from minivmm.cli.boot_gdb import open_gdb

        address = self._options.gdb
        gdb, line = await open_gdb(self._machine, context, self._loop, self._system, address)
        if str(self._directory.gdb_socket) not in line:  # in a lab it is said outside
            self._notice(line)
        with self._loop.lock:
            if not self._options.freeze and self._machine.state == "prelaunch":
                self._machine.resume()
        return gdb

    # -- ends --------------------------------------------------------------------------------------

    def _finish(self, end: int | MinivmmError) -> None:
        """The first end counts."""
        if self._finished.done():
            return
        if isinstance(end, MinivmmError):
            self._finished.set_exception(end)
        else:
            self._finished.set_result(end)

    def _on_end(self, outcome: Outcome) -> None:
        if outcome.died:
            self._console.show_tail()
            self._finish(_failure(outcome))
        elif self._signals:
            self._finish(Interrupted("interrupted"))
        elif not self._options.command:
            self._finish(0)
        elif outcome.reason.startswith("host"):
            self._finish(Interrupted("stopped from outside before the command ended"))
        else:
            self._finish(GuestFailure("the guest powered off before the command ended"))

    def _on_timeout(self) -> None:
        seconds = f"{self._options.timeout:g}"
        if not self._agent.ready:
            self._console.show_tail()
        self._finish(Timeout(f"not finished after {seconds} s (--timeout)"))

    def _on_signal(self, number: int) -> None:
        """First: ask the guest to power off, if it can hear that; second: end."""
        self._signals += 1
        if self._signals > 1 or not self._agent.ready:
            self._finish(Interrupted(f"ended by {signal.Signals(number).name}"))
        else:
            self._notice("powering off (once more to end at once)")
            with self._loop.lock:
                self._machine.request_powerdown()
            self._loop.call_later(
                POWERDOWN_GRACE, lambda: self._finish(Interrupted("the guest did not power off"))
            )

    # -- the command -------------------------------------------------------------------------------

    def _run_command(self) -> None:
        """Run it like `minivmm exec` does, in a thread of its own; its end is ours."""
        from minivmm.control import exec_client

        ignore_in_this_thread()
        end: int | MinivmmError
        patience = 0.0
        try:
            end = exec_client.run(
                self._directory.exec_socket,
                self._options.command,
                stdin=None if os.isatty(STDIN) else STDIN,
                stdout=STDOUT,
                stderr=STDERR,
                timeout=READY_TIMEOUT,
            )
        except WaitTimeout:
            self._loop.call_soon(self._console.show_tail)
            end = GuestFailure(f"the guest was not ready for a command after {READY_TIMEOUT:g} s")
        except GuestFailure as error:
            end, patience = error, LAST_WORDS
        except MinivmmError as error:
            end = error
        except OSError as error:  # nobody reads our output any more
            end = Interrupted(f"output cannot be written: {error.strerror}")
        self._loop.call_soon(lambda: self._loop.call_later(patience, lambda: self._finish(end)))

    # -- the console -------------------------------------------------------------------------------

    def _open_console(self) -> Output | None:
        """Where console output goes: stdout for a shell, nowhere (or stderr) beside a command."""
        if not self._options.command:
            end = Interrupted("nobody reads the guest's console any more")
            return Output(STDOUT, lambda: self._loop.call_soon(lambda: self._finish(end)))
        return Output(STDERR) if self._options.verbose else None

    # -- our own lines -----------------------------------------------------------------------------

    def _notice(self, text: str) -> None:
        if not self._options.quiet:
            say(text)

    def _report_stats(self) -> None:
        if not self._options.stats:
            return
        stats = self._machine.stats
        if self._options.json:
            print(json.dumps({"schema": SCHEMA, **stats.report()}), file=sys.stderr, flush=True)
        else:
            for line in stats.lines():
                say(line)


def _failure(outcome: Outcome) -> MinivmmError:
    """The error for a machine that died: the host's KVM may be to blame rather than the guest."""
    found = probe() if outcome.state == "internal-error" else None
    if found is None or found.usable:
        return GuestFailure(outcome.reason)
    return HostError(f"{outcome.reason}; {found.reason}: try --accel lab")
