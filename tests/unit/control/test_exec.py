"""`minivmm exec` from end to end: real client, real socket, real shells in a fake guest."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from minivmm.control import exec_client
from minivmm.control.agent import GuestAgent
from minivmm.control.exec_server import ExecServer
from minivmm.devices.virtio_console.device import VirtioConsole
from minivmm.errors import GuestFailure, NoSuchMachine, UsageError, WaitTimeout
from minivmm.frames import Decoder, Frame, Kind
from minivmm.loop import EventLoop
from minivmm.testing.console_guest import ConsoleGuest
from minivmm.testing.fake_agent import FakeAgent
from minivmm.trace import Trace

ALL_BYTES = bytes(range(256))


class Vm:
    """Everything but the VM: loop in a thread, server, agent, console, and a guest of processes."""

    def __init__(self, socket_path: Path) -> None:
        self.socket = socket_path
        self.loop = EventLoop()
        self.console = VirtioConsole()
        self.guest = ConsoleGuest(self.console, self.loop.lock)
        self.agent = GuestAgent(self.console, Trace())
        self.server = ExecServer(self.agent, self.loop)
        self.fake = FakeAgent(self.guest)
        self._thread = threading.Thread(target=self.loop.asyncio.run_forever)
        self._thread.start()
        self.wait(self.server.start(socket_path))

    def boot(self) -> None:
        self.guest.probe()
        self.fake.start()

    def close(self) -> None:
        self.fake.stop()
        self.wait(self.server.close())
        self.loop.asyncio.call_soon_threadsafe(self.loop.asyncio.stop)
        self._thread.join(timeout=10)
        self.loop.asyncio.close()

    def wait(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self.loop.asyncio).result(10)

    def run(
        self, *argv: str, stdin: bytes | None = None, timeout: float = 10, **options: Any
    ) -> tuple[int, bytes, bytes]:
        """Run through the client; files stand in for the caller's descriptors."""
        with contextlib.ExitStack() as files:
            out, err, source = (
                files.enter_context(os.fdopen(os.memfd_create(name), "w+b")) for name in "oei"
            )
            source.write(stdin or b"")
            source.seek(0)
            status = exec_client.run(
                self.socket,
                argv,
                stdin=None if stdin is None else source.fileno(),
                stdout=out.fileno(),
                stderr=err.fileno(),
                timeout=timeout,
                **options,
            )
            out.seek(0)
            err.seek(0)
            return status, out.read(), err.read()


@pytest.fixture
def cold(tmp_path: Path) -> Iterator[Vm]:
    """A VM whose guest has not booted."""
    vm = Vm(tmp_path / "exec.sock")
    yield vm
    vm.close()


@pytest.fixture
def vm(cold: Vm) -> Vm:
    cold.boot()
    return cold


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether `condition` holds within a few seconds."""
    deadline = time.monotonic() + 5
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_output_errors_and_status_come_back(vm: Vm) -> None:
    assert vm.run("sh", "-c", "echo out; echo err >&2; exit 42") == (42, b"out\n", b"err\n")


def test_every_byte_passes_both_ways(vm: Vm) -> None:
    data = ALL_BYTES * 3000

    assert vm.run("cat", stdin=data) == (0, data, b"")


def test_every_byte_passes_in_arguments_and_environment(vm: Vm) -> None:
    word = os.fsdecode(ALL_BYTES[1:])

    status, out, _ = vm.run("sh", "-c", 'printf "%s" "$1$X"', "-", word, env={"X": word})

    assert (status, out) == (0, ALL_BYTES[1:] * 2)


def test_command_runs_in_the_root_directory_or_where_asked(vm: Vm) -> None:
    assert vm.run("pwd")[1] == b"/\n"
    assert vm.run("pwd", cwd="/usr")[1] == b"/usr\n"


@pytest.mark.parametrize("stdin", [None, b""])
def test_no_stdin_and_empty_stdin_are_end_of_file(vm: Vm, stdin: bytes | None) -> None:
    assert vm.run("cat", stdin=stdin) == (0, b"", b"")


def test_command_that_ignores_stdin_ends(vm: Vm) -> None:
    assert vm.run("true", stdin=b"x" * 2_000_000)[0] == 0


def test_large_output_is_complete(vm: Vm) -> None:
    assert vm.run("sh", "-c", "yes | head -c 3000000") == (0, b"y\n" * 1_500_000, b"")


@pytest.mark.parametrize(("script", "status"), [("/no/such", 127), ("kill -TERM $$", 143)])
def test_statuses_are_those_of_a_shell(vm: Vm, script: str, status: int) -> None:
    assert vm.run("sh", "-c", script)[0] == status


def test_eight_commands_at_once_share_the_ports(vm: Vm) -> None:
    def one(number: int) -> tuple[int, bytes, bytes]:
        return vm.run("sh", "-c", f"cat; exit {number}", stdin=bytes((number,)) * 100_000)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(one, range(8)))

    assert results == [(number, bytes((number,)) * 100_000, b"") for number in range(8)]


def test_command_waits_for_the_guest_to_boot(cold: Vm) -> None:
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(cold.run, "echo", "up")
        time.sleep(0.1)
        cold.boot()

        assert result.result(10) == (0, b"up\n", b"")


def test_guest_that_never_boots_is_a_timeout(cold: Vm) -> None:
    with pytest.raises(WaitTimeout, match=r"0\.1 s"):
        cold.run("true", timeout=0.1)


def test_impossible_command_is_a_usage_error(vm: Vm) -> None:
    with pytest.raises(UsageError, match="environment variable"):
        vm.run("true", env={"a b": "c"})


def test_nobody_listening_is_no_such_machine(tmp_path: Path) -> None:
    with pytest.raises(NoSuchMachine, match="nothing"):
        exec_client.run(tmp_path / "nothing", ["true"], stdin=None, stdout=1, stderr=2)


def test_reset_of_the_guest_ends_the_command(vm: Vm) -> None:
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(vm.run, "sleep", "60")
        assert eventually(lambda: bool(vm.fake.running))
        vm.guest.reset()

        with pytest.raises(GuestFailure, match="went away"):
            result.result(10)


def test_bug_of_ours_ends_the_command(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm.agent, "run", None)

    with pytest.raises(GuestFailure, match="bug in minivmm: TypeError"):
        vm.run("true")


def test_end_of_the_server_ends_the_command(vm: Vm) -> None:
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(vm.run, "sleep", "60")
        assert eventually(lambda: bool(vm.fake.running))
        vm.wait(vm.server.close())

        with pytest.raises(GuestFailure, match="went away"):
            result.result(10)


# -- raw clients ----------------------------------------------------------------------------------


def connect(vm: Vm, *argv: str, **request: object) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(5)
    client.connect(str(vm.socket))
    client.sendall(Frame(0, Kind.OPEN, json.dumps({"argv": argv, **request}).encode()).encode())
    return client


def receive(client: socket.socket, kind: Kind) -> Frame:
    """The first frame of `kind`."""
    decoder = Decoder()
    while data := client.recv(65536):
        for frame in decoder.feed(data):
            if frame.kind is kind:
                return frame
    raise AssertionError(f"no {kind.name} frame came")


def test_client_that_disconnects_kills_its_command(vm: Vm) -> None:
    with connect(vm, "sh", "-c", "echo up; sleep 60") as client:
        receive(client, Kind.STDOUT)
        assert vm.fake.running

    assert eventually(lambda: not vm.fake.running)
    assert eventually(lambda: vm.agent.inspect()["running"] == [])


def test_client_that_disconnects_with_blocked_output_kills_its_command(vm: Vm) -> None:
    with connect(vm, "yes") as client:
        receive(client, Kind.STDOUT)
        assert eventually(lambda: vm.console.ports[2].throttled), "back-pressure reaches the guest"

    assert eventually(lambda: not vm.fake.running)


def test_client_that_disconnects_before_the_guest_boots_is_forgotten(cold: Vm) -> None:
    with connect(cold, "true"):
        assert eventually(lambda: len(cold.agent.on_ready) == 1)

    assert eventually(lambda: cold.agent.on_ready == [])


def test_signal_reaches_a_command_that_does_not_read(vm: Vm) -> None:
    with connect(vm, "sleep", "60", stdin=True) as client:
        receive(client, Kind.CREDIT)
        client.sendall(Frame(0, Kind.STDIN, b"x" * 256 * 1024).encode())
        assert eventually(lambda: bool(vm.fake.running))

        client.sendall(Frame(0, Kind.SIGNAL, b'{"signal": 15}').encode())

        assert json.loads(receive(client, Kind.EXIT).payload) == {"status": 143}


def test_signal_before_the_guest_boots_ends_the_wait(cold: Vm) -> None:
    with connect(cold, "true") as client:
        client.sendall(Frame(0, Kind.SIGNAL, b'{"signal": 2}').encode())

        assert json.loads(receive(client, Kind.EXIT).payload) == {"status": 130}


@pytest.mark.parametrize(
    "frame",
    [
        Frame(0, Kind.OPEN, b"{}"),
        Frame(0, Kind.OPEN, b"nonsense"),
        Frame(0, Kind.OPEN, b'{"argv": "ls"}'),
        Frame(0, Kind.OPEN, b'{"argv": ["ls"], "timeout": "soon"}'),
        Frame(0, Kind.STDIN, b"too early"),
        Frame(0, Kind.EXIT, b"{}"),
        Frame(0, Kind.SIGNAL, b'{"signal": 4711}'),
    ],
)
def test_nonsense_from_a_client_is_answered(vm: Vm, frame: Frame) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(vm.socket))
        client.sendall(frame.encode())

        answer = json.loads(receive(client, Kind.FAILED).payload)

    assert answer["class"] == "UsageError"
    assert vm.run("true")[0] == 0


# -- the client as a process ----------------------------------------------------------------------

CLIENT = """
import sys, pathlib
from minivmm.control import exec_client
sys.exit(exec_client.run(pathlib.Path(sys.argv[1]), sys.argv[2:], stdin=0, stdout=1, stderr=2))
"""


@contextlib.contextmanager
def client_process(vm: Vm, *argv: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(vm.socket), *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_the_client_go_to_the_command(vm: Vm, number: signal.Signals) -> None:
    trap = 'trap "echo got; exit 9" INT TERM; echo up; while :; do sleep 0.02; done'
    with client_process(vm, "sh", "-c", trap) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"

        process.send_signal(number)

        assert process.stdout.read() == b"got\n"
        assert process.wait(10) == 9


def test_interactive_input_is_not_held_back(vm: Vm) -> None:
    with client_process(vm, "cat") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in (b"one\n", b"two\n"):
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline() == line
        process.stdin.close()

        assert process.wait(10) == 0


def test_client_imports_neither_asyncio_nor_construct() -> None:
    check = "import sys, minivmm.control.exec_client as c; print(sorted(sys.modules))"

    modules = subprocess.check_output([sys.executable, "-c", check], text=True)

    assert "'asyncio'" not in modules
    assert "'construct'" not in modules
