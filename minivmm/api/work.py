"""Work on a machine's loop that both faces offer: commands in the guest, readiness, reboot, QMP."""

from __future__ import annotations

import asyncio
import shlex
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minivmm.api.engine import Engine
from minivmm.control.agent_session import Callbacks, Session
from minivmm.control.commands import perform
from minivmm.control.inside import inside_command
from minivmm.control.readiness import LAST_WORDS, until_ready
from minivmm.devices.virtio_mem.verdict import Diagnosis, Kind
from minivmm.errors import CommandFailed, GuestFailure, MinivmmError, WaitTimeout
from minivmm.outcome import Outcome

OUTPUT_LIMIT = 64 << 20
"""Bytes of output of a command; one that writes more is killed."""

INSIDE_LIMIT = 64 << 10
"""Characters that a guest may tell of itself for a diagnosis."""


@dataclass(frozen=True)
class Completed:
    """What a command in the guest gave; `status` is 128 + number for signals."""

    command: tuple[str, ...]
    status: int
    output: bytes
    errors: bytes

    @property
    def stdout(self) -> str:
        """Standard output as text."""
        return self.output.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """Standard error as text."""
        return self.errors.decode(errors="replace")

    def check(self) -> Completed:
        """Itself. Raises CommandFailed if the status is not 0."""
        if self.status == 0:
            return self
        said = (self.stderr.strip() or self.stdout.strip()).rpartition("\n")[2]
        raise CommandFailed(
            f"{shlex.join(self.command)} ended with status {self.status}: {said or 'no output'}",
            self.status,
        )


async def run(
    engine: Engine,
    command: str | Sequence[str],
    *,
    input: str | bytes | None,
    env: Mapping[str, str] | None,
    cwd: str | None,
    timeout: float,
) -> Completed:
    """Run `command` (a text is for the shell) once the guest is ready, for `timeout` seconds.

    Raises WaitTimeout, GuestFailure if the guest or the machine ends before, UsageError for what
    cannot be passed on.
    """
    argv = ("sh", "-c", command) if isinstance(command, str) else tuple(command)
    data = input.encode() if isinstance(input, str) else input
    running = _Running(engine)
    try:
        async with asyncio.timeout(timeout):
            await ready(engine, None)
            running.start(argv, data, env, cwd)
            status = await engine.while_it_lives(running.end)
    except GuestFailure as error:
        raise await _last_words(engine, error) from None
    except TimeoutError:
        raise WaitTimeout(f"{shlex.join(argv)} has not ended after {timeout:g} s") from None
    finally:
        running.abandon()
    return Completed(argv, status, bytes(running.output), bytes(running.errors))


async def _last_words(engine: Engine, error: GuestFailure) -> GuestFailure:
    """What ended a command: if its agent went away, the machine may be about to say why."""
    if engine.outcome is not None or engine.servers.agent.ready:
        return error
    try:
        async with asyncio.timeout(LAST_WORDS):
            outcome = await engine.until_ended()
    except TimeoutError:
        return error
    return GuestFailure(f"{engine.spec.name}: {outcome.reason}")


class _Running:
    """A command under way; callbacks come with the lock held, from any thread."""

    def __init__(self, engine: Engine) -> None:
        self.output, self.errors = bytearray(), bytearray()
        self.end: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._engine = engine
        self._session: Session | None = None

    def start(
        self,
        argv: Sequence[str],
        data: bytes | None,
        env: Mapping[str, str] | None,
        cwd: str | None,
    ) -> None:
        callbacks = Callbacks(
            on_stdout=lambda piece: self._take(self.output, piece),
            on_stderr=lambda piece: self._take(self.errors, piece),
            on_exit=lambda status: self._finish(status),
            on_failed=lambda error: self._finish(error),
        )
        with self._engine.loop.lock:
            self._session = self._engine.servers.agent.run(
                argv, callbacks, env=env, cwd=cwd, stdin=data is not None
            )
            if data is not None:
                self._session.write_stdin(data)
                self._session.close_stdin()

    def abandon(self) -> None:
        """Kill it if it still runs; nobody waits any more."""
        if self._session is not None:
            with self._engine.loop.lock:
                self._session.kill(signal.SIGKILL)
        self.end.cancel()

    def _take(self, where: bytearray, piece: bytes) -> None:
        if len(where) + len(piece) > OUTPUT_LIMIT:
            self._finish(GuestFailure(f"the command wrote more than {OUTPUT_LIMIT >> 20}M"))
        else:
            where += piece

    def _finish(self, end: int | MinivmmError) -> None:
        def tell() -> None:
            if self.end.done():
                return
            if isinstance(end, MinivmmError):
                self.end.set_exception(end)
            else:
                self.end.set_result(end)

        self._engine.loop.call_soon(tell)


async def ready(engine: Engine, timeout: float | None) -> None:
    """Return once the guest runs commands. Raises WaitTimeout, GuestFailure if it ends before."""
    work = until_ready(engine.servers.agent, engine.loop, timeout)
    await engine.while_it_lives(work)


async def ended(engine: Engine, timeout: float) -> Outcome:
    """How the machine ended. Raises WaitTimeout if it has not after `timeout` seconds."""
    try:
        async with asyncio.timeout(timeout):
            return await engine.until_ended()
    except TimeoutError:
        raise WaitTimeout(f"{engine.spec.name} still runs after {timeout:g} s") from None


async def reboot(engine: Engine, timeout: float) -> None:
    """Reset the machine, and wait until its guest runs commands again. Raises as `ready` does."""
    done = asyncio.Event()
    machine = engine.machine

    def listen(name: str, data: dict[str, object]) -> None:
        if name == "RESET":
            engine.loop.call_soon(done.set)

    with engine.loop.lock:
        machine.on_event.append(listen)
        machine.request_reset()
    try:
        async with asyncio.timeout(timeout):
            await engine.while_it_lives(done.wait())
            await ready(engine, None)
    except TimeoutError:
        raise WaitTimeout(f"the guest is not ready {timeout:g} s after a reset") from None
    finally:
        with engine.loop.lock:
            machine.on_event.remove(listen)


async def query(engine: Engine, command: str, arguments: Mapping[str, Any]) -> Any:
    """What QMP's `command` returns; '_' in names of arguments is '-'. Raises Refused."""
    import minivmm.control.qmp_session  # noqa: F401 - it has all commands; that takes long

    given = {key.replace("_", "-"): value for key, value in arguments.items()}
    with engine.loop.lock:
        return perform(engine.servers.context, command, given)


async def why(engine: Engine, identifier: str, patience: float) -> Diagnosis:
    """The diagnosis of a memory device; its guest gets `patience` seconds to tell what it knows."""
    answer = await query(engine, "x-minivmm-why", {"id": identifier})
    if answer["agent-ready"] and engine.outcome is None and patience > 0:
        words = inside_command(answer["memory-devices"])
        try:
            told = await run(engine, words, input=None, env=None, cwd=None, timeout=patience)
            inside = told.stdout[:INSIDE_LIMIT]
        except MinivmmError as error:
            inside = str(error)
        answer = await query(engine, "x-minivmm-why", {"id": identifier, "inside": inside})
    found = answer["memory-devices"][0]
    return Diagnosis(
        Kind(found["kind"]),
        found["summary"],
        tuple(found["evidence"]),
        found["remedy"],
        found["certain"],
    )
