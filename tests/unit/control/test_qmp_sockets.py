"""Where the control socket may be made: stale files, live ones, and what is no socket."""

import asyncio
import socket
from pathlib import Path

import pytest

from minivmm.control.client import Client
from minivmm.control.face import Context
from minivmm.control.qmp import QmpServer
from minivmm.errors import HostError
from minivmm.testing.fake_machine import FakeMachine


def serve_once(path: Path) -> str:
    """Start and close a server at `path`; the VM's name as a client read it in between."""
    machine = FakeMachine("vm1")

    def ask() -> str:
        with Client(path) as client:
            return str(client.execute("query-name")["name"])

    async def serve() -> str:
        server = QmpServer(Context(machine), machine.lock)
        await server.start(path)
        name = await asyncio.to_thread(ask)
        await server.close()
        return name

    return asyncio.run(serve())


def test_a_stale_socket_is_replaced_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "q.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))

    assert serve_once(path) == "vm1"
    assert not path.exists()


def test_a_socket_in_use_is_not_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "q.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(HostError, match="in use"):
            serve_once(path)
    assert path.exists()


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "q.sock"
    path.write_text("precious")

    with pytest.raises(HostError, match="cannot listen"):
        serve_once(path)

    assert path.read_text() == "precious"


def test_too_long_a_path_is_a_host_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot listen"):
        serve_once(tmp_path / ("x" * 120))


def test_a_client_that_does_not_read_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minivmm.control.qmp_session.BACKLOG_MAX", 1 << 16)
    path = tmp_path / "q.sock"
    machine = FakeMachine("vm1")

    async def serve() -> None:
        server = QmpServer(Context(machine), machine.lock)
        await server.start(path)
        client = await asyncio.to_thread(Client, path)
        for _ in range(10_000):
            machine.emit("STOP", {"padding": "x" * 100})
        await asyncio.sleep(0.05)
        assert await asyncio.to_thread(client.wait_closed, 5)
        client.close()
        await server.close()

    asyncio.run(serve())
