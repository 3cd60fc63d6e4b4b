"""The asyncio face of a machine: the same as vm.py, with methods to await.

    async with minivmm.aio.boot(memory="512M", devices=[minivmm.VirtioMem(size="4G")]) as vm:
        await vm.mem["vmem0"].resize("1G").wait()
        print((await vm.run("uname -r")).stdout)

The machine has its own event loop in its own thread: one that blocks yours does not stop it. What
is cancelled here is cancelled there.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar, Unpack

from minivmm.api import resizing, saving, work
from minivmm.api.booting import open_host, start, tail
from minivmm.api.engine import Engine
from minivmm.api.events import Following, Match
from minivmm.api.machine_model import MachineModel
from minivmm.api.model import DeviceModel
from minivmm.api.plan import BootOptions, Plan, Size, make_plan
from minivmm.api.resizing import ResizeResult
from minivmm.api.saving import Saved
from minivmm.api.vm import PATIENCE, Devices
from minivmm.api.work import Completed
from minivmm.control.tree import walk
from minivmm.devices.virtio_mem.verdict import Diagnosis
from minivmm.outcome import Outcome
from minivmm.trace import Event

T = TypeVar("T")


@asynccontextmanager
async def boot(
    kernel: str | Path | None = None, **options: Unpack[BootOptions]
) -> AsyncIterator[AsyncVm]:
    """Boot a machine, and wait until it runs commands; options and errors are those of boot()."""
    plan = make_plan(kernel, options)
    system = open_host()  # here: it may have to be the main thread
    starting = asyncio.ensure_future(asyncio.to_thread(start, plan, system))
    try:
        engine = await asyncio.shield(starting)
    except asyncio.CancelledError:
        starting.add_done_callback(lambda done: None if done.exception() else done.result().close())
        raise
    try:
        await _ready(engine, plan)
        yield AsyncVm(engine)
    finally:
        await asyncio.shield(asyncio.to_thread(engine.close))


async def _ready(engine: Engine, plan: Plan) -> None:
    try:
        if plan.ready:
            await engine.reach(work.ready(engine, plan.timeout))
    except Exception as error:
        error.add_note(tail(engine))
        raise


class AsyncResize:
    """A resize: awaiting `wait` asks for it, unless `ask` was awaited before."""

    def __init__(self, engine: Engine, identifier: str, size: Size) -> None:
        self._engine = engine
        self._id = identifier
        self._size = size
        self._asked: resizing.Request | None = None

    async def ask(self) -> None:
        """Set the size. Raises UsageError for what is no size."""
        if self._asked is None:
            asked = resizing.request(self._engine, self._id, self._size)
            self._asked = await self._engine.reach(asked)

    async def wait(self, timeout: float = 60.0) -> ResizeResult:
        """As Resize.wait."""
        await self.ask()
        assert self._asked is not None
        return await self._engine.reach(resizing.follow(self._engine, self._asked, timeout))


class AsyncMemoryDevice(DeviceModel):
    """A virtio-mem device."""

    def resize(self, size: Size) -> AsyncResize:
        """Ask for `size`, as MemoryDevice.resize; await its `wait` or `ask`."""
        return AsyncResize(self._engine, self.id, size)

    async def kick(self) -> bool:
        """As MemoryDevice.kick."""
        query = work.query(self._engine, "x-minivmm-kick", {"id": self.id})
        return bool((await self._engine.reach(query))[0]["sent"])

    async def why(self, patience: float = PATIENCE) -> Diagnosis:
        """As MemoryDevice.why."""
        return await self._engine.reach(work.why(self._engine, self.id, patience))


class AsyncConsole:
    """What the guest prints, and its keyboard."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def text(self) -> str:
        """As Console.text."""
        return self._engine.log.text

    async def expect(self, pattern: str | re.Pattern[str], timeout: float = 30.0) -> re.Match[str]:
        """As Console.expect."""
        engine = self._engine
        return await engine.reach(engine.while_it_lives(engine.log.expect(pattern, timeout)))

    async def send(self, keys: str | bytes, timeout: float = 30.0) -> None:
        """As Console.send."""
        engine = self._engine
        data = keys.encode() if isinstance(keys, str) else keys
        await engine.reach(engine.while_it_lives(engine.log.type(data, timeout)))


class AsyncFollowing:
    """Events as they come: `async for`, or wait_for."""

    def __init__(self, following: Following) -> None:
        self._following = following

    @property
    def events(self) -> list[Event]:
        """As Following.events."""
        return self._following.events

    async def wait_for(self, match: Match, timeout: float = 30.0) -> Event:
        """As Following.wait_for; if it is cancelled, a thread goes on waiting until `timeout`."""
        return await asyncio.to_thread(self._following.wait_for, match, timeout)

    async def __aiter__(self) -> AsyncIterator[Event]:
        events = iter(self._following)
        while (event := await asyncio.to_thread(next, events, None)) is not None:
            yield event


class AsyncTraceView:
    """A machine's trace."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @asynccontextmanager
    async def follow(
        self, *patterns: str, details: str = "requests"
    ) -> AsyncIterator[AsyncFollowing]:
        """As TraceView.follow; only as `async with`."""
        following = await asyncio.to_thread(Following, self._engine, patterns, details)
        try:
            yield AsyncFollowing(following)
        finally:
            following.close()


class AsyncVm(MachineModel):
    """A running machine; Vm says more on each of its parts."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.console = AsyncConsole(engine)
        self.trace = AsyncTraceView(engine)
        devices = engine.machine.memory_devices
        self.mem: Mapping[str, AsyncMemoryDevice] = Devices(
            self.name, {key: AsyncMemoryDevice(engine, device) for key, device in devices.items()}
        )

    async def call(self, fn: Callable[[], T]) -> T:
        """As Vm.call."""
        return await asyncio.to_thread(self.engine.call, fn)

    async def run(
        self,
        command: str | Sequence[str],
        *,
        check: bool = False,
        input: str | bytes | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout: float = 60.0,
    ) -> Completed:
        """As Vm.run; if it is cancelled, the command is killed."""
        ran = work.run(self.engine, command, input=input, env=env, cwd=cwd, timeout=timeout)
        done = await self.engine.reach(ran)
        return done.check() if check else done

    async def wait_ready(self, timeout: float = 300.0) -> None:
        """As Vm.wait_ready."""
        await self.engine.reach(work.ready(self.engine, timeout))

    async def wait_ended(self, timeout: float = 60.0) -> Outcome:
        """As Vm.wait_ended."""
        return await self.engine.reach(work.ended(self.engine, timeout))

    async def reboot(self, timeout: float = 300.0) -> None:
        """As Vm.reboot."""
        await self.engine.reach(work.reboot(self.engine, timeout))

    async def snapshot(
        self,
        directory: str | Path,
        *,
        base: str | Path | None = None,
        track: bool = False,
        timeout: float = 300.0,
    ) -> Saved:
        """As Vm.snapshot; if it is cancelled, there is none."""
        saved = saving.snapshot(self.engine, directory, base, track, timeout)
        return await self.engine.reach(saved)

    async def inspect(self, path: str = "") -> Any:
        """As Vm.inspect."""
        return await self.call(lambda: walk(self.engine.machine.inspect(), path))

    async def qmp(self, command: str, **arguments: Any) -> Any:
        """As Vm.qmp."""
        return await self.engine.reach(work.query(self.engine, command, arguments))
