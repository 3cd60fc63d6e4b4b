"""Agent and link over a socket pair, without a machine in between: both run on the host here."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minivmm.errors import HostError
from minivmm.frames import MAX_PAYLOAD
from minivmm.lab.link import Link
from minivmm.lab.session import Session
from minivmm.lab.streams import WINDOW

AGENT = """
import os, sys
from minivmm.lab.agent import Agent
os.set_inheritable(int(sys.argv[1]), False)
Agent(int(sys.argv[1])).serve()
"""
PLAIN: dict[str, Any] = {"env": dict(os.environ), "cwd": "/", "terminal": []}
TERMINAL = {**PLAIN, "terminal": [0, 1, 2], "rows": 40, "columns": 100}


class Pair:
    """An agent process and the link to it."""

    def __init__(self) -> None:
        self.open = True
        ours, theirs = socket.socketpair()
        log, log_end = os.pipe()
        with theirs:
            self.agent = subprocess.Popen(
                [sys.executable, "-c", AGENT, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stderr=log_end,
            )
        os.close(log_end)
        self.link = Link(ours.detach(), log)
        self.link.wait_ready(20)

    def close(self) -> None:
        if self.open:
            self.open = False
            self.link.close()
            self.status = self.agent.wait(10)


@pytest.fixture(scope="module")
def shared() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


@pytest.fixture
def link(shared: Pair) -> Link:
    return shared.link


@pytest.fixture
def own() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


class Ends:
    """Our ends of a session's three pipes."""

    def __init__(self) -> None:
        stdin_read, self.stdin = os.pipe()
        self.stdout, stdout_write = os.pipe()
        self.stderr, stderr_write = os.pipe()
        self._theirs = [stdin_read, stdout_write, stderr_write]

    def start(self, link: Link, request: dict[str, Any]) -> Session:
        return link.run(request, self._theirs)

    def release(self) -> None:
        """Close the session's ends, so that reading ours comes to an end."""
        while self._theirs:
            os.close(self._theirs.pop())

    def close(self) -> None:
        self.release()
        for fd in (self.stdin, self.stdout, self.stderr):
            if fd >= 0:
                os.close(fd)

    def close_stdin(self) -> None:
        os.close(self.stdin)
        self.stdin = -1

    def close_stdout(self) -> None:
        os.close(self.stdout)
        self.stdout = -1

    def close_stderr(self) -> None:
        os.close(self.stderr)
        self.stderr = -1


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


def run(
    link: Link, tmp_path: Path, argv: list[str], data: bytes = b"", **changes: Any
) -> tuple[int, bytes, bytes]:
    """Run a command with files for its streams: status, stdout, stderr."""
    files = [tmp_path / name for name in ("in", "out", "err")]
    files[0].write_bytes(data)
    with files[0].open("rb") as stdin, files[1].open("wb") as out, files[2].open("wb") as err:
        fds = [stdin.fileno(), out.fileno(), err.fileno()]
        status = link.run({**PLAIN, "run": argv, **changes}, fds).wait()
    return status, files[1].read_bytes(), files[2].read_bytes()


def read_until(fd: int, wanted: bytes) -> bytes:
    seen = b""
    while wanted not in seen:
        piece = os.read(fd, 65536)
        assert piece, f"end of file after {seen!r}"
        seen += piece
    return seen


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -9 $$", 137)],
)
def test_exit_status_comes_back(link: Link, tmp_path: Path, script: str, status: int) -> None:
    assert run(link, tmp_path, ["sh", "-c", script])[0] == status


def test_unknown_command_is_127_with_a_reason(link: Link, tmp_path: Path) -> None:
    status, _, error = run(link, tmp_path, ["no-such-command"])

    assert status == 127
    assert b"no-such-command" in error
    assert b"No such file" in error


def test_command_that_cannot_be_executed_is_126(link: Link, tmp_path: Path) -> None:
    assert run(link, tmp_path, ["/etc/passwd"])[0] == 126


def test_binary_data_passes_unchanged_and_longer_than_the_window(
    link: Link, tmp_path: Path
) -> None:
    data = random.Random(1).randbytes(5 * WINDOW + 12345)

    assert run(link, tmp_path, ["cat"], data) == (0, data, b"")


def test_stdout_and_stderr_stay_apart(link: Link, tmp_path: Path) -> None:
    assert run(link, tmp_path, ["sh", "-c", "echo out; echo err >&2"]) == (0, b"out\n", b"err\n")


def test_environment_and_directory_are_those_asked_for(link: Link, tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "ODD": "a=b\nc ü\udcff"}

    _, out, _ = run(link, tmp_path, ["sh", "-c", 'pwd; echo "$ODD"'], env=env, cwd=str(tmp_path))

    assert out == os.fsencode(f"{tmp_path}\na=b\nc ü\udcff\n")


def test_command_starts_with_default_signals(link: Link, tmp_path: Path) -> None:
    _, out, _ = run(link, tmp_path, ["grep", "-E", "SigIgn|SigBlk", "/proc/self/status"])

    assert [int(line.split()[1], 16) for line in out.splitlines()] == [0, 0]


def test_command_gets_no_descriptors_but_its_three(link: Link, tmp_path: Path) -> None:
    _, out, _ = run(link, tmp_path, ["ls", "/proc/self/fd"])

    assert out.split() == [b"0", b"1", b"2", b"3"]  # 3: ls itself reads the directory


def test_signal_reaches_the_whole_process_group(link: Link, ends: Ends) -> None:
    child = "(trap 'echo child; exit' USR1; echo up; while :; do sleep 0.05; done) &"
    script = f"trap : USR1; {child} wait; wait; exit 9"
    session = ends.start(link, {**PLAIN, "run": ["sh", "-c", script]})
    read_until(ends.stdout, b"up")

    session.send_signal(signal.SIGUSR1)

    assert read_until(ends.stdout, b"child")
    assert session.wait() == 9


def test_background_process_does_not_hold_up_the_end(link: Link, tmp_path: Path) -> None:
    started = time.monotonic()

    result = run(link, tmp_path, ["sh", "-c", "sleep 30 & echo done"])

    assert result == (0, b"done\n", b"")
    assert time.monotonic() - started < 10


def test_terminal_has_the_size_and_follows_it(link: Link, ends: Ends) -> None:
    script = "trap 'stty size; exit 3' WINCH; test -t 2 && stty size; while :; do sleep 0.05; done"
    session = ends.start(link, {**TERMINAL, "run": ["sh", "-c", script]})
    first = read_until(ends.stdout, b"\n")

    session.resize(11, 22)

    assert first == b"40 100\r\n"
    assert read_until(ends.stdout, b"\n") == b"11 22\r\n"
    assert session.wait() == 3


def test_ctrl_c_on_a_terminal_interrupts_the_command(link: Link, ends: Ends) -> None:
    session = ends.start(link, {**TERMINAL, "run": ["sh", "-c", "echo up; exec sleep 60"]})
    read_until(ends.stdout, b"up\r\n")

    os.write(ends.stdin, b"\x03")

    assert session.wait() == 130


def test_end_of_input_reaches_a_command_on_a_terminal(link: Link, ends: Ends) -> None:
    session = ends.start(link, {**TERMINAL, "run": ["cat"]})
    os.write(ends.stdin, b"hello\n")
    ends.close_stdin()
    ends.release()

    assert session.wait() == 0
    assert read_until(ends.stdout, b"hello\r\nhello\r\n")


def test_stdout_can_be_a_pipe_beside_a_terminal(link: Link, ends: Ends) -> None:
    script = "test -t 0 && test -t 2 && ! test -t 1 && echo a && echo b >&2"
    session = ends.start(link, {**TERMINAL, "terminal": [0, 2], "run": ["sh", "-c", script]})

    assert session.wait() == 0
    assert read_until(ends.stdout, b"\n") == b"a\n"
    assert read_until(ends.stderr, b"\n") == b"b\r\n"


def test_writer_gets_sigpipe_when_our_reader_leaves(link: Link, ends: Ends) -> None:
    session = ends.start(link, {**PLAIN, "run": ["yes"]})
    read_until(ends.stdout, b"y")

    ends.close_stdout()

    assert session.wait() == 128 + signal.SIGPIPE


@pytest.mark.timeout(20)
def test_status_comes_back_after_all_readers_left(link: Link, ends: Ends) -> None:
    ends.close_stdout()
    ends.close_stderr()

    script = "trap '' PIPE; echo out; echo err >&2; sleep 0.3; exit 5"
    session = ends.start(link, {**PLAIN, "run": ["sh", "-c", script]})

    assert session.wait() == 5


def test_stalled_reader_stalls_its_own_stream_only(link: Link, ends: Ends, tmp_path: Path) -> None:
    script = "trap 'exit 5' TERM; head -c 10000000 /dev/zero & wait; echo late >&2"
    session = ends.start(link, {**PLAIN, "run": ["sh", "-c", script]})
    read_until(ends.stdout, b"\0")

    other = run(link, tmp_path, ["head", "-c", "3000000", "/dev/zero"])
    held = sum(len(sink._pending) for sink in session._sinks.values())
    read = 1
    while read < 10_000_000 - 65536:
        read += len(os.read(ends.stdout, 65536))
    while b"late" not in os.read(ends.stderr, 100):
        pass

    assert other[1] == bytes(3_000_000)
    assert 0 < held <= WINDOW


def test_too_long_a_command_is_refused(link: Link) -> None:
    with pytest.raises(HostError, match="pass long arguments in a file"):
        link.run({**PLAIN, "run": ["echo", "x" * MAX_PAYLOAD]}, (0, 1, 2))


@pytest.fixture
def echo_server(tmp_path: Path) -> Iterator[Path]:
    """A server that sends back what it got, in capitals, once the client ended its sending."""
    path = tmp_path / "target.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                got = b""
                while piece := connection.recv(65536):
                    got += piece
                connection.sendall(got.upper())

    thread = threading.Thread(target=serve)
    thread.start()
    yield path
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def ask(path: Path, data: bytes) -> bytes:
    """Send `data` and its end to a socket; what comes back."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(path))
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := client.recv(65536):
            answer += piece
        return answer


def test_forwarded_socket_carries_data_and_half_close(own: Pair, echo_server: Path) -> None:
    here = echo_server.with_name("here.sock")
    own.link.forward(here, str(echo_server), 0)

    answers = [ask(here, data) for data in (b"hello", b"", b"x" * (2 * WINDOW + 99))]

    assert answers == [b"HELLO", b"", b"X" * (2 * WINDOW + 99)]
    assert eventually(lambda: not own.link._channels)
    own.close()
    assert not here.exists()


def test_forward_to_nothing_ends_the_client(link: Link, tmp_path: Path) -> None:
    link.forward(tmp_path / "here.sock", str(tmp_path / "nobody.sock"), 0)

    assert ask(tmp_path / "here.sock", b"") == b""


def test_forward_waits_for_a_late_server(link: Link, tmp_path: Path) -> None:
    target = tmp_path / "late.sock"
    link.forward(tmp_path / "here.sock", str(target), 15)
    with socket.socket(socket.AF_UNIX) as client, socket.socket(socket.AF_UNIX) as server:
        client.settimeout(20)
        client.connect(str(tmp_path / "here.sock"))
        client.sendall(b"early")
        time.sleep(0.3)
        server.bind(str(target))
        server.listen()
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"welcome")
            got = connection.recv(100), client.recv(100)

    assert got == (b"early", b"welcome")


def test_lost_agent_ends_every_session_with_a_reason(ends: Ends, tmp_path: Path) -> None:
    pair = Pair()
    session = ends.start(pair.link, {**PLAIN, "run": ["cat"]})  # ends with the agent's pipe
    pair.agent.kill()

    with pytest.raises(HostError, match="lab machine lost"):
        session.wait()
    with pytest.raises(HostError, match="lab machine lost"):
        run(pair.link, tmp_path, ["true"])
    pair.close()


def test_agent_ends_when_the_host_is_gone() -> None:
    pair = Pair()

    pair.close()

    assert pair.status == 0
