"""Snapshots of a machine of the Python interface: asking for one, and waiting for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from minivmm.api.engine import Engine
from minivmm.errors import Refused, WaitTimeout
from minivmm.snapshot.desk import EVENT


@dataclass(frozen=True)
class Saved:
    """A snapshot that was taken; sizes in bytes, times in seconds."""

    directory: Path
    plugged: int
    """Memory that the guest had."""
    written: int
    """What was stored of it."""
    pause: float
    """How long the guest stood still."""
    seconds: float


async def snapshot(
    engine: Engine, directory: str | Path, base: str | Path | None, track: bool, timeout: float
) -> Saved:
    """Take one. Raises Refused, UsageError, HostError; WaitTimeout, and then there is none."""
    over = asyncio.Event()
    machine, desk = engine.machine, engine.servers.snapshots

    def listen(name: str, data: dict[str, object]) -> None:
        if name == EVENT and data["status"] != "active":
            engine.loop.call_soon(over.set)

    place = Path(directory).absolute()
    with engine.loop.lock:
        desk.begin(str(place), None if base is None else str(Path(base).absolute()), track=track)
        progress = desk.progress
        machine.on_event.append(listen)
    try:
        async with asyncio.timeout(timeout):
            await engine.while_it_lives(over.wait())
    except TimeoutError:
        raise WaitTimeout(f"{engine.spec.name}: no snapshot after {timeout:g} s") from None
    finally:
        with engine.loop.lock:
            machine.on_event.remove(listen)
            if not over.is_set():
                desk.cancel()
    assert progress is not None
    if progress.status != "completed" or progress.pause is None:
        raise Refused(progress.error or "no snapshot was taken")
    return Saved(place, progress.plugged, progress.written, progress.pause, progress.seconds)
