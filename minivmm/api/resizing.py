"""A resize under way: what the guest made of it, and if that is not all, why; on the loop."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from enum import StrEnum

from minivmm.api import work
from minivmm.api.engine import Engine
from minivmm.control.targets import pick_device, target_size
from minivmm.devices.virtio_mem.verdict import Diagnosis, Kind
from minivmm.errors import GuestFailure, UsageError
from minivmm.units import format_size, parse_size

QUIET = 5.5
"""Seconds without a change after which the diagnosis is asked; it takes 5 s of silence."""

LOOK = 0.5
"""Seconds between looks when no event comes."""

PATIENCE = 3.0
"""Seconds that the guest may take to tell what it knows."""

HOPELESS = frozenset(
    (
        Kind.NO_DRIVER,
        Kind.FEATURE_REFUSED,
        Kind.NOT_ADDRESSABLE,
        Kind.NO_WHOLE_BLOCK,
        Kind.REMAINDER,
        Kind.BROKEN,
    )
)
"""What no waiting cures."""

LIMITED = frozenset((Kind.WORKING, Kind.NO_WHOLE_BLOCK, Kind.REMAINDER))
"""Nothing is wrong: it takes longer, or the guest cannot use the rest."""


class ResizeState(StrEnum):
    """How a resize came out."""

    DONE = "done"
    """Exactly what was asked for is plugged."""
    PARTIAL = "partial"
    """Only some of it: there was no more time, or the rest is less than the guest's unit."""
    STALLED = "stalled"
    """The guest cannot or does not go on; the diagnosis says why."""
    REFUSED = "refused"
    """The device did not take the request, or somebody else asked for another size."""


@dataclass(frozen=True)
class ResizeResult:
    """How a resize of `device` to `requested` bytes came out; `reason` is one line on it."""

    device: str
    state: ResizeState
    requested: int
    plugged: int
    seconds: float
    """From the request until then."""
    reason: str = ""
    diagnosis: Diagnosis | None = None

    @property
    def done(self) -> bool:
        """Whether exactly what was asked for is plugged."""
        return self.state is ResizeState.DONE

    def check(self) -> ResizeResult:
        """Itself. Raises GuestFailure, with the reason, if it is not done."""
        if self.done:
            return self
        raise GuestFailure(f"{self.device}: {self.state}: {self.reason}")


@dataclass(frozen=True)
class Request:
    """A size that was asked for, in bytes, at `since` (CLOCK_MONOTONIC); or why it was not."""

    device: str
    target: int
    since: float
    refused: str | None = None


async def request(engine: Engine, identifier: str, size: int | str) -> Request:
    """Ask for `size`: bytes, "1G", "+256M" or "-256M". Raises UsageError for what is no size."""
    rows = await work.query(engine, "query-memory-devices", {})
    row = pick_device(rows, identifier, engine.machine.name)
    now = time.monotonic()
    text = str(size)
    parse_size(text.lstrip("+-"))
    if engine.outcome is not None:
        return Request(identifier, row["requested-size"], now, engine.outcome.reason)
    try:
        target = target_size(text, row)
    except UsageError as error:
        return Request(identifier, row["requested-size"], now, str(error))
    arguments = {"path": identifier, "property": "requested-size", "value": target}
    await work.query(engine, "qom-set", arguments)
    return Request(identifier, target, now)


async def follow(engine: Engine, asked: Request, timeout: float) -> ResizeResult:
    """How it came out, `timeout` seconds from now at the latest; earlier if no waiting helps.

    Raises GuestFailure if the machine ends meanwhile.
    """
    if asked.refused is not None:
        return _result(engine, asked, ResizeState.REFUSED, asked.refused)
    changed = asyncio.Event()

    def listen(name: str, data: dict[str, object]) -> None:
        if name == "MEMORY_DEVICE_SIZE_CHANGE" and data["id"] == asked.device:
            engine.loop.call_soon(changed.set)

    with engine.loop.lock:
        engine.machine.on_event.append(listen)
    try:
        return await engine.while_it_lives(_follow(engine, asked, timeout, changed))
    finally:
        with engine.loop.lock:
            engine.machine.on_event.remove(listen)


async def _follow(
    engine: Engine, asked: Request, timeout: float, changed: asyncio.Event
) -> ResizeResult:
    device = engine.machine.memory_devices[asked.device]
    deadline = time.monotonic() + timeout
    last, moved = device.plugged_size, time.monotonic()
    while True:
        changed.clear()
        with engine.loop.lock:
            requested, plugged = device.requested_size, device.plugged_size
        now = time.monotonic()
        if requested != asked.target:
            said = f"requested-size became {format_size(requested)} meanwhile"
            return _result(engine, asked, ResizeState.REFUSED, said)
        if plugged == asked.target:
            return _result(engine, asked, ResizeState.DONE)
        if plugged != last:
            last, moved = plugged, now
        over = now >= deadline
        if over or now - moved > QUIET:
            found = await work.why(engine, asked.device, PATIENCE)
            if found.kind is not Kind.DONE and (over or found.kind in HOPELESS):
                return _unfinished(engine, asked, found)
            moved = time.monotonic()
        try:
            async with asyncio.timeout(min(LOOK, max(0.0, deadline - now))):
                await changed.wait()
        except TimeoutError:
            continue


def _unfinished(engine: Engine, asked: Request, found: Diagnosis) -> ResizeResult:
    state = ResizeState.PARTIAL if found.kind in LIMITED else ResizeState.STALLED
    return _result(engine, asked, state, found.headline, found)


def _result(
    engine: Engine,
    asked: Request,
    state: ResizeState,
    reason: str = "",
    diagnosis: Diagnosis | None = None,
) -> ResizeResult:
    with engine.loop.lock:
        plugged = engine.machine.memory_devices[asked.device].plugged_size
    taken = time.monotonic() - asked.since
    return ResizeResult(asked.device, state, asked.target, plugged, taken, reason, diagnosis)
