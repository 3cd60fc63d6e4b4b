"""Where GDB connects to a guest in the lab: kept, but closed until there is a guest."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import cast

import pytest

from minivmm.cli.lab_gdb import GdbDoor
from minivmm.errors import HostError
from minivmm.lab.lab import Lab
from minivmm.runtime import MachineDir


class FakeLab:
    """Takes a socket to forward, and greets who comes."""

    def __init__(self) -> None:
        self.forwarded: list[tuple[socket.socket, str]] = []

    def forward_socket(self, listener: socket.socket, target: str, *, patience: float) -> None:
        assert patience > 1
        self.forwarded.append((listener, target))

    def close(self) -> None:
        for listener, _ in self.forwarded:
            listener.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def wait_for(lab: FakeLab) -> None:
    deadline = time.monotonic() + 5
    while not lab.forwarded:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_opens_when_the_vm_answers(live: MachineDir, capfd: pytest.CaptureFixture[str]) -> None:
    lab, port = FakeLab(), free_port()

    with GdbDoor(cast(Lab, lab), str(port), "/run/gdb.sock", live.qmp_socket, quiet=False):
        wait_for(lab)
        socket.create_connection(("127.0.0.1", port), timeout=5).close()

    assert [target for _, target in lab.forwarded] == ["/run/gdb.sock"]
    assert f"gdb can connect: target remote 127.0.0.1:{port}" in capfd.readouterr().err
    lab.close()


def test_nobody_is_let_in_before_that(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lab, port = FakeLab(), free_port()

    with (
        GdbDoor(cast(Lab, lab), str(port), "/run/gdb.sock", tmp_path / "qmp.sock", quiet=False),
        pytest.raises(ConnectionRefusedError),  # upon which GDB tries again
    ):
        socket.create_connection(("127.0.0.1", port), timeout=5)

    assert lab.forwarded == []
    assert capfd.readouterr().err == ""
    socket.create_server(("127.0.0.1", port)).close()


def test_a_unix_socket_goes_with_it(live: MachineDir, tmp_path: Path) -> None:
    lab, path = FakeLab(), tmp_path / "gdb.sock"

    with GdbDoor(cast(Lab, lab), f"unix:{path}", "/run/gdb.sock", live.qmp_socket, quiet=True):
        wait_for(lab)
        assert path.is_socket()

    assert not path.exists()
    lab.close()


def test_a_taken_port_is_told_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(HostError, match="choose another port"):
            GdbDoor(cast(Lab, FakeLab()), str(port), "x", tmp_path / "q", quiet=True)
