"""A fake machine that answers on a real control socket, in a runtime directory of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

import minivmm.control.qmp_session  # noqa: F401 - the commands
from minivmm import runtime
from minivmm.control.face import Context
from minivmm.control.qmp import QmpServer
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.testing.fake_machine import FakeMachine
from minivmm.units import GIB


@pytest.fixture
def runtime_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINIVMM_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine("vm1", [VirtioMemSpec(id="vmem0", size=GIB)])


@pytest.fixture
def live(machine: FakeMachine, runtime_root: Path) -> Iterator[runtime.MachineDir]:
    """`machine` as a running VM: claimed, and served by a thread until it quits."""
    directory = runtime.claim(machine.name)
    started = threading.Event()

    async def serve() -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        machine.on_quit = end = lambda: cast(None, loop.call_soon_threadsafe(ended.set))
        stop.append(end)
        server = QmpServer(Context(machine, machine.agent), machine.lock)
        await server.start(directory.qmp_socket)
        started.set()
        await ended.wait()
        await server.close()
        directory.remove()

    stop: list[Callable[[], None]] = []
    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(10)
    yield directory
    if thread.is_alive():
        stop[0]()
    thread.join(10)
    assert not thread.is_alive()
