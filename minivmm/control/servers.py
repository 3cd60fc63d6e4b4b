"""All that a running machine offers to others: its guest's agent, its console, and the sockets.

Whoever boots a machine (`minivmm boot`, the Python interface) makes one of these for it. What is
said on each socket is its server's matter, and so is what ends the machine its owner's.
"""

from __future__ import annotations

import asyncio
from functools import cached_property
from typing import TYPE_CHECKING

from minivmm.control.agent import GuestAgent
from minivmm.control.console_hub import ConsoleHub
from minivmm.control.console_server import ConsoleServer
from minivmm.control.exec_server import ExecServer
from minivmm.control.face import Context
from minivmm.control.guest_watch import GuestWatch
from minivmm.control.qmp import QmpServer
from minivmm.control.trace_server import TraceServer
from minivmm.loop import EventLoop
from minivmm.machine import Machine
from minivmm.runtime import MachineDir
from minivmm.tracing.scene import scene_of
from minivmm.tracing.touches import Touches

if TYPE_CHECKING:
    from minivmm.migration.migration import Migration
    from minivmm.snapshot.desk import Desk


class Servers:
    """One machine's, before it starts. On its loop, without the lock; `hub` has its console."""

    def __init__(self, machine: Machine, hub: ConsoleHub, loop: EventLoop) -> None:
        self.agent = GuestAgent(machine.board.console, machine.trace)
        self.agent.on_ready.append(lambda: machine.stats.mark("ready"))
        self._machine = machine
        self.context = Context(machine, self.agent, lambda: self.migration, lambda: self.snapshots)
        self.scene = scene_of(machine)
        """What traces tell of the machine."""
        self.qmp = QmpServer(self.context, loop.lock)
        """May be given more sockets."""
        self._commands = ExecServer(self.agent, loop)
        self._consoles = ConsoleServer(hub, loop)
        self._events = TraceServer(self.scene, loop)
        self._watch = GuestWatch(self.agent, machine.trace, machine.memory_devices)
        Touches(machine.trace, machine.memory_devices, machine.later)
        board = machine.board
        hub.connect(board.terminal if machine.spec.keyboard == "hvc0" else board.serial)

    @cached_property
    def migration(self) -> Migration:
        """Into this process before it starts, out of it afterwards; with the lock held."""
        from minivmm.migration.migration import Migration

        return Migration(self._machine)

    @cached_property
    def snapshots(self) -> Desk:
        """Where snapshots are asked for; with the lock held."""
        from minivmm.snapshot.desk import Desk

        return Desk(self._machine)

    async def start(self, directory: MachineDir) -> None:
        """Listen on the sockets of `directory`: QMP's last, by which a VM is known to live.

        Raises HostError or OSError; `close` is to be called all the same.
        """
        await self._commands.start(directory.exec_socket)
        await self._consoles.start(directory.console_socket)
        await self._events.start(directory.trace_socket)
        await self.qmp.start(directory.qmp_socket)

    async def close(self) -> None:
        """Let what waits leave, and hang up; harmless if nothing was started."""
        if "migration" in vars(self) and not self.migration.progress.over:
            await asyncio.to_thread(self.migration.close)
        self._watch.close()
        await self._commands.close()
        await self._consoles.close()
        await self.qmp.close()
        await self._events.close()
