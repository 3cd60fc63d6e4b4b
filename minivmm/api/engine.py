"""Engine: a machine in this process, on an event loop in a thread of its own.

    whoever calls             the engine's thread             vCPU threads
    wait(work) ------------>  await work, lock taken          exits, lock taken
       result  <------------  where devices are touched

Work is coroutines that run on the machine's loop (work.py, resizing.py, console_log.py); the two
faces, blocking (vm.py) and asyncio (aio.py), only bring it here. Signals are left alone, except for
the one that interrupts vCPUs (kvm/vcpu.py).
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import dataclasses
import itertools
import json
import logging
import os
import threading
import warnings
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from minivmm import runtime
from minivmm.api.console_log import ConsoleLog
from minivmm.api.plan import Plan
from minivmm.control.console_hub import ConsoleHub
from minivmm.control.servers import Servers
from minivmm.devices.virtio_mem.mischief import mischief_of
from minivmm.errors import GuestFailure, IdleRule, NoSuchMachine
from minivmm.guest_image import GuestImage
from minivmm.kvm.hypervisor import Hypervisor
from minivmm.loop import EventLoop
from minivmm.machine import Machine
from minivmm.machine_spec import spec_to_json
from minivmm.outcome import Outcome
from minivmm.snapshot.restored import load

T = TypeVar("T")

_log = logging.getLogger("minivmm")

_numbers = itertools.count(1)
_running: weakref.WeakSet[Engine] = weakref.WeakSet()


class Engine:
    """Builds the machine of `plan` and starts it; `system` is closed with it.

    Raises what Machine raises, and leaves nothing behind then. `close` may be called again.
    """

    machine: Machine
    loop: EventLoop
    servers: Servers
    log: ConsoleLog

    def __init__(
        self, plan: Plan, image: GuestImage | Callable[[], GuestImage], system: Hypervisor
    ) -> None:
        name = plan.spec.name or f"py{os.getpid()}-{next(_numbers)}"
        self.spec = dataclasses.replace(plan.spec, name=name)
        self.directory: runtime.MachineDir | None = None
        """Where its sockets are."""
        self._plan = plan
        self._image = image
        self._system = system
        self._begun: Future[None] = Future()
        self._gate = threading.Lock()  # guards what follows
        self._over = False
        self._closing = False
        # A daemon: Python waits for other threads before it calls what atexit knows.
        self._thread = threading.Thread(target=self._main, name=f"minivmm-{name}", daemon=True)
        self._thread.start()
        _running.add(self)
        try:
            self._begun.result()
        except BaseException:
            self.close()
            raise

    @property
    def outcome(self) -> Outcome | None:
        """How the machine ended; None while it has not."""
        return self.machine.outcome

    @property
    def closed(self) -> bool:
        """Whether everything is gone."""
        return not self._thread.is_alive()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Have `work` done on the machine's loop. Raises NoSuchMachine once that is closed."""
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("this would wait for itself: not from the machine's own thread")
        with self._gate:
            if self._over:
                work.close()
                raise self._gone()
            return asyncio.run_coroutine_threadsafe(work, self.loop.asyncio)

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, for a thread that waits. Ctrl-C here cancels it there."""
        future = self.submit(work)
        try:
            return future.result()
        except CancelledError:
            raise self._gone() from None
        finally:
            future.cancel()

    async def reach(self, work: Coroutine[Any, Any, T]) -> T:
        """The same on another event loop; cancelling here cancels there."""
        future = self.submit(work)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if future.cancelled() and self.closed:
                raise self._gone() from None
            raise

    def call(self, fn: Callable[[], T]) -> T:
        """What `fn` returns, called on the machine's loop with its lock held."""

        async def locked() -> T:
            with self.loop.lock:
                return fn()

        return self.wait(locked())

    async def while_it_lives(self, work: Awaitable[T]) -> T:
        """The result of `work`. Raises GuestFailure if the machine ends before; on the loop."""
        task = asyncio.ensure_future(work)
        ended = asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait((task, ended), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await asyncio.wait((task,), timeout=0)  # what came with the end counts
            if task.done():
                return task.result()
            assert self.outcome is not None
            raise GuestFailure(f"{self.spec.name}: {self.outcome.reason}")
        finally:
            task.cancel()
            ended.cancel()
            await asyncio.gather(task, ended, return_exceptions=True)

    async def until_ended(self) -> Outcome:
        """How the machine ended, when it has; on the loop."""
        await self._ended.wait()
        assert self.outcome is not None
        return self.outcome

    def close(self) -> None:
        """End the machine, and free all of it; work that is under way ends with NoSuchMachine.

        Warns (IdleRule) of each rule by which a device was to misbehave and that never acted.
        """
        if threading.current_thread() is self._thread:
            raise RuntimeError("a machine cannot be closed by its own thread")
        self._closing = True
        with contextlib.suppress(AttributeError, RuntimeError):  # it did not begin, or is over
            self.loop.asyncio.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        if self in _running:
            _running.discard(self)
            self._warn_of_idle_rules()

    def _warn_of_idle_rules(self) -> None:
        if not hasattr(self, "machine"):
            return
        for device in self.machine.memory_devices.values():
            for rule in mischief_of(device).idle_rules():
                line = f"{self.spec.name}: {device.identifier}: {rule.complaint()}"
                warnings.warn(line, IdleRule, 3)

    def _warn(self, line: str) -> None:
        _log.warning("%s: %s", self.spec.name, line)

    def _gone(self) -> NoSuchMachine:
        return NoSuchMachine(f"{self.spec.name} is closed: boot another")

    def _main(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:
            if self._begun.done():
                raise
            self._begun.set_exception(error)

    async def _run(self) -> None:
        self.loop = EventLoop(asyncio.get_running_loop())
        self._stop, self._ended = asyncio.Event(), asyncio.Event()
        try:
            if self._plan.sockets:
                self.directory = runtime.claim(self.spec.name or "")
                self.directory.spec_file.write_text(json.dumps(spec_to_json(self.spec)) + "\n")
            hub = ConsoleHub(self.loop)
            self.log = ConsoleLog(hub, self.loop)
            self.machine = machine = Machine(
                self.spec,
                self._image,
                self._system,
                self.loop,
                console=hub.print,
                empty=self._plan.restore is not None,
            )
            try:
                if self._plan.restore is not None:
                    with self.loop.lock:
                        load(self._plan.restore, machine)
                await self._serve(hub)
            finally:
                machine.close()
        finally:
            self._system.close()
            if self.directory is not None:
                self.directory.remove()

    async def _serve(self, hub: ConsoleHub) -> None:
        """Until `close`: a machine that ended can still be looked at."""
        machine = self.machine
        self.servers = Servers(machine, hub, self.loop)
        machine.on_end.append(lambda _: self.loop.call_soon(self._ended.set))
        machine.on_warning.append(self._warn)
        for line in machine.board.address_map.warnings():
            self._warn(line)
        try:
            if self.directory is not None:
                await self.servers.start(self.directory)
            with self.loop.lock:
                self.log.begin()
                machine.start()
            self._begun.set_result(None)
            if not self._closing:  # before there was a loop to tell it to
                await self._stop.wait()
        finally:
            with self._gate:
                self._over = True
            await asyncio.sleep(0)  # what was submitted until now begins, and so can be cancelled
            await self.servers.close()


@atexit.register
def _close_all() -> None:
    """Nobody's guest outlives the process, and no directory is left behind."""
    for engine in list(_running):
        engine.close()
