"""`minivmm console` on a terminal and beside a pipe, at the console of a fake VM."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from typing import Any

import pexpect
import pytest

from minivmm.cli import main
from minivmm.control.console_hub import ConsoleHub
from minivmm.control.console_server import ConsoleServer
from minivmm.loop import EventLoop
from minivmm.runtime import MachineDir
from minivmm.testing.fake_machine import FakeMachine


class Shell:
    """A guest that shows what is typed, in brackets."""

    def __init__(self, hub: ConsoleHub, events: EventLoop, server: ConsoleServer) -> None:
        self.hub = hub
        self.typed = b""
        self._events = events
        self._server = server

    def print(self, data: bytes) -> None:
        with self._events.lock:
            self.hub.print(data)

    def end(self) -> None:
        """The VM is over."""
        asyncio.run_coroutine_threadsafe(self._server.close(), self._events.asyncio).result(10)

    def on_space(self) -> None:
        """It takes everything."""

    def receive(self, data: bytes) -> int:
        self.typed += data
        self.hub.print(b"[" + data + b"]\r\n")
        return len(data)


@pytest.fixture
def shell(live: MachineDir) -> Iterator[Shell]:
    loop = asyncio.new_event_loop()
    events = EventLoop(loop)
    hub = ConsoleHub(events)
    server = ConsoleServer(hub, events)
    guest = Shell(hub, events, server)
    hub.connect(guest)  # type: ignore[arg-type]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.start(live.console_socket), loop).result(10)
    guest.print(b"welcome\r\n")
    yield guest
    guest.end()
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture
def terminal(shell: Shell) -> Iterator[Any]:
    child = pexpect.spawn(
        sys.executable, ["-m", "minivmm", "console", "vm1"], timeout=10, encoding="utf-8"
    )
    child.mode = termios.tcgetattr(child.child_fd)
    child.expect("Ctrl-] leaves")
    child.expect("welcome")
    yield child
    child.close()


def leave(child: Any, keys: str) -> None:
    child.send(keys)
    child.expect("left vm1; it runs on")
    child.expect(pexpect.EOF)
    after = termios.tcgetattr(child.child_fd)
    child.close()
    assert child.exitstatus == 0
    assert after[:4] == child.mode[:4]


def test_typing_reaches_the_guest_and_ctrl_bracket_leaves(terminal: Any, shell: Shell) -> None:
    terminal.send("ls\r")
    terminal.expect(r"\[ls\r\]")
    terminal.send("\x03")  # is the guest's
    terminal.expect(r"\[\x03\]")

    leave(terminal, "a\x1db")

    assert shell.typed in (b"ls\r\x03", b"ls\r\x03a")


def test_escapes(terminal: Any, machine: FakeMachine, shell: Shell) -> None:
    terminal.send("\x01h")
    terminal.expect("Ctrl-A b  send a break")
    terminal.send("\x01s")
    terminal.expect("VM status: running")
    terminal.send("\x01a")
    terminal.expect(r"\[\x01\]")
    terminal.send("\x01b")
    terminal.send("\x01c")
    terminal.expect(r"\(minivmm\) ")
    assert machine.calls == ["break"]
    terminal.send("stop\r")
    terminal.expect(r"\(minivmm\) ")
    assert machine.state == "paused"
    terminal.send("nonsense\r")
    terminal.expect("unknown command")
    terminal.send("\x01cx")
    terminal.expect(r"\[x\]")

    leave(terminal, "\x01x")

    assert b"stop" not in shell.typed


def test_beside_a_pipe_it_is_one(shell: Shell) -> None:
    words = [sys.executable, "-m", "minivmm", "console", "-q", "vm1"]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"date\x1d\n")  # which means nothing here
        child.stdin.close()
        assert child.stdout.readline() == b"welcome\r\n"
        assert child.stdout.readline() == b"[date\x1d\n"
        shell.print(b"later\r\n")
        assert child.stdout.readline() == b"]\r\n"
        assert child.stdout.readline() == b"later\r\n"
        child.send_signal(2)
        child.wait(10)
        assert child.stderr is not None
        assert (child.returncode, child.stderr.read()) == (0, b"")


def test_who_only_watches_types_nothing(shell: Shell) -> None:
    child = pexpect.spawn(
        sys.executable, ["-m", "minivmm", "console", "-r"], timeout=10, encoding="utf-8"
    )
    child.expect("Ctrl-C leaves")
    child.expect("welcome")
    child.send("rm -rf\r")
    child.sendcontrol("c")

    child.expect("left vm1")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert shell.typed == b""


def test_it_ends_with_the_vm(terminal: Any, shell: Shell) -> None:
    shell.print(b"Power down\r\n")
    shell.end()

    terminal.expect("Power down")

    terminal.expect("vm1 has ended")
    terminal.expect(pexpect.EOF)


@pytest.mark.usefixtures("runtime_root")
def test_no_vm_no_console(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["console", "vm1"]) == 3
    assert "no VM named 'vm1'" in capsys.readouterr().err


def test_a_vm_without_a_console_socket(
    live: MachineDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not os.path.exists(live.console_socket)  # noqa: PTH110
    assert main.run(["console", "vm1"]) == 3
    assert "vm1 has no console" in capsys.readouterr().err
