"""guest/agent.sh on the host: a pseudo terminal plays the control port, FIFOs play the streams.

Never send it `quit` here: busybox's shell runs its own poweroff, whatever PATH says.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import minivmm.guest

SHELLS = {"dash": ["sh"], "busybox": ["busybox", "sh"]}
SCRIPT = Path(minivmm.guest.__path__[0]) / "agent.sh"
STREAMS = range(1, 8)
PLAIN = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_./=:,+@%-"


def encode(script: bytes) -> str:
    """The form in which scripts travel: printable, for the guest's printf %b."""
    return "".join(chr(byte) if byte in PLAIN else f"\\0{byte:03o}" for byte in script)


def open_terminal(path: Path) -> tuple[int, int]:
    """A raw pseudo terminal whose far end is at `path`: a file that two sides read and write."""
    master, slave = os.openpty()
    tty.setraw(slave)
    path.symlink_to(os.ttyname(slave))
    return master, slave


class Agent:
    """The agent's process and the host's ends of its ports."""

    def __init__(self, shell: list[str], root: Path, script: Path = SCRIPT) -> None:
        ports, devices = root / "ports", root / "devices"
        devices.mkdir()
        names = ["minivmm.control", *(f"minivmm.stream.{number}" for number in STREAMS)]
        for index, name in enumerate(names):
            (ports / f"vport3p{index}").mkdir(parents=True)
            (ports / f"vport3p{index}" / "name").write_text(f"{name}\n")
        self.fds = list(open_terminal(devices / "vport3p0"))
        self.control = self.fds[0]
        self.input, far_end = open_terminal(devices / "vport3p1")
        self.fds += [self.input, far_end]
        self.streams: dict[int, int] = {}
        for number in list(STREAMS)[1:-1]:
            os.mkfifo(devices / f"vport3p{number}")
            self.streams[number] = os.open(devices / f"vport3p{number}", os.O_RDWR | os.O_NONBLOCK)
        (devices / f"vport3p{STREAMS[-1]}").mkdir()  # cannot be opened for writing
        self.buffer = b""
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "MINIVMM_PORTS": str(ports),
            "MINIVMM_DEVICES": str(devices),
            "MINIVMM_RUN": str(root),
        }
        self.process = subprocess.Popen(
            [*shell, str(script)], env=environment, stdin=subprocess.DEVNULL
        )

    def send(self, line: str) -> None:
        os.write(self.control, f"{line}\n".encode())

    def execute(self, id: int, script: bytes, *, i: str = "-", o: int = 2, e: int = 3) -> None:
        self.send(f"exec {id} {i} {o} {e} {encode(script)}")

    def line(self, timeout: float = 10.0) -> str:
        deadline = time.monotonic() + timeout
        while b"\n" not in self.buffer:
            wait = max(0.0, deadline - time.monotonic())
            assert select.select([self.control], [], [], wait)[0], "the agent says nothing"
            self.buffer += os.read(self.control, 4096)
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line.decode()

    def output(self, number: int) -> bytes:
        """All that the guest wrote to a stream so far."""
        parts = []
        while True:
            try:
                parts.append(os.read(self.streams[number], 65536))
            except BlockingIOError:
                return b"".join(parts)

    def wait_for(self, number: int) -> bytes:
        assert select.select([self.streams[number]], [], [], 10.0)[0], "no output"
        return self.output(number)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for fd in (*self.fds, *self.streams.values()):
            os.close(fd)


@pytest.fixture(params=list(SHELLS))
def shell(request: pytest.FixtureRequest) -> list[str]:
    words = SHELLS[request.param]
    if shutil.which(words[0]) is None or shutil.which("setsid") is None:
        pytest.skip(f"{words[0]} or setsid is not installed")
    return words


@contextmanager
def running(agent: Agent) -> Iterator[Agent]:
    try:
        assert agent.line() == f"ready {os.uname().release}"
        yield agent
    finally:
        agent.close()


@pytest.fixture
def agent(shell: list[str], tmp_path: Path) -> Iterator[Agent]:
    with running(Agent(shell, tmp_path)) as started:
        yield started


def test_hello_is_answered(agent: Agent) -> None:
    agent.send("hello")

    assert agent.line() == f"here {os.uname().release}"


def test_streams_and_status(agent: Agent) -> None:
    agent.execute(5, b"echo out; echo err >&2; exit 7")

    assert agent.line() == "exit 5 7"
    assert (agent.output(2), agent.output(3)) == (b"out\n", b"err\n")


def test_script_arrives_byte_for_byte(agent: Agent) -> None:
    text = bytes(range(1, 256)).replace(b"'", b"") + b"\\0101 %s \\n $HOME `id` * \xc3\xa9"
    agent.execute(1, b"printf %s '" + text + b"'")

    assert agent.line() == "exit 1 0"
    assert agent.output(2) == text


def test_command_has_no_descriptors_of_the_agent(agent: Agent) -> None:
    agent.execute(1, b"cd /proc/self/fd && for fd in *; do [ -e $fd ] && echo $fd; done; :")

    assert agent.line() == "exit 1 0"
    assert set(agent.output(2).split()) <= {b"0", b"1", b"2"}


def test_command_runs_in_the_root_directory_with_null_input(agent: Agent) -> None:
    agent.execute(1, b"pwd; cat; echo $#")

    assert agent.line() == "exit 1 0"
    assert agent.output(2) == b"/\n0\n"


def test_input_follows_the_mark(agent: Agent) -> None:
    data = bytes(range(256)) * 4
    agent.execute(1, b"head -c 1024 | od -v -An -tu1", i="1")

    assert os.read(agent.input, 1) == b"."
    os.write(agent.input, data)

    assert agent.line() == "exit 1 0"
    assert bytes(map(int, agent.output(2).split())) == data


def test_sessions_run_side_by_side(agent: Agent) -> None:
    agent.execute(1, b"sleep 0.4; echo slow", o=2, e=3)
    agent.execute(2, b"echo quick", o=4, e=5)

    assert agent.line() == "exit 2 0"
    assert agent.line() == "exit 1 0"
    assert (agent.output(2), agent.output(4)) == (b"slow\n", b"quick\n")


@pytest.mark.parametrize("signal", [2, 9, 15])
def test_killed_command_reports_the_signal(agent: Agent, signal: int) -> None:
    agent.execute(1, b"echo go; exec sleep 60")
    agent.wait_for(2)
    agent.send(f"kill 1 {signal}")

    assert agent.line() == f"exit 1 {128 + signal}"
    assert agent.output(3) == b""


def test_kill_right_after_exec_is_not_lost(agent: Agent) -> None:
    agent.execute(1, b"exec sleep 60")
    agent.send("kill 1 15")

    assert agent.line() == "exit 1 143"


def test_kill_reaches_the_whole_group(agent: Agent) -> None:
    agent.execute(1, b"sleep 60 & echo $!; wait")
    child = int(agent.wait_for(2))
    agent.send("kill 1 15")

    assert agent.line() == "exit 1 143"
    status = Path(f"/proc/{child}/stat")
    deadline = time.monotonic() + 5
    while status.exists() and status.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the child lives on"
        time.sleep(0.01)


def test_command_may_handle_the_signal(agent: Agent) -> None:
    agent.execute(1, b"trap 'echo caught; exit 3' INT; echo go; while :; do sleep 0.05; done")
    agent.wait_for(2)
    agent.send("kill 1 2")

    assert agent.line() == "exit 1 3"
    assert agent.output(2) == b"caught\n"


def test_kill_of_one_session_leaves_others_alone(agent: Agent, tmp_path: Path) -> None:
    released = tmp_path / "released"
    agent.execute(1, b"exec sleep 60", o=2, e=3)
    agent.execute(2, f"until [ -e {released} ]; do sleep 0.05; done; echo fine".encode(), o=4, e=5)
    agent.send("kill 1 9")

    assert agent.line() == "exit 1 137"
    released.touch()
    assert agent.line() == "exit 2 0"
    assert agent.output(4) == b"fine\n"


def test_abandoned_commands_are_killed_and_later_ones_are_not(agent: Agent) -> None:
    agent.execute(1, b"echo go; exec sleep 60", o=2, e=3)
    agent.wait_for(2)
    agent.execute(2, b"trap '' TERM INT; exec sleep 60", o=4, e=5)  # may not have begun yet
    agent.send("abandon")
    agent.send("hello")

    assert {agent.line() for _ in range(3)} == {
        f"here {os.uname().release}",
        "exit 1 137",
        "exit 2 137",
    }
    agent.execute(3, b"echo still here", o=2, e=3)
    assert agent.line() == "exit 3 0"
    assert agent.output(2) == b"still here\n"


def test_command_that_begins_right_after_an_abandon_lives(agent: Agent) -> None:
    agent.execute(1, b"exec sleep 60", o=2, e=3)
    agent.send("abandon")
    agent.execute(2, b"sleep 0.3; echo alive", o=4, e=5)

    assert {agent.line(), agent.line()} == {"exit 1 137", "exit 2 0"}
    assert agent.output(4) == b"alive\n"


def test_there_may_be_nothing_to_abandon(agent: Agent) -> None:
    agent.send("abandon")
    agent.send("hello")

    assert agent.line() == f"here {os.uname().release}"


def test_unknown_sessions_and_verbs_are_ignored(agent: Agent) -> None:
    agent.send("kill 99 9")
    agent.send("dance 1 2 3")
    agent.send("")
    agent.execute(1, b"true")

    assert agent.line() == "exit 1 0"


def test_unknown_stream_fails(agent: Agent) -> None:
    agent.execute(1, b"true", o=77)

    assert agent.line() == "failed 1 there is no stream 77"


def test_stream_that_cannot_be_opened_fails(agent: Agent) -> None:
    agent.execute(1, b"true", o=STREAMS[-1])

    assert agent.line() == f"failed 1 stream {STREAMS[-1]} is in use"


def test_script_beyond_the_systems_limit_fails(agent: Agent) -> None:
    agent.execute(1, b"#" + b"a" * 140_000)

    assert agent.line().startswith("failed 1 cannot start a process")


def test_processes_left_behind_are_not_waited_for(agent: Agent) -> None:
    agent.execute(1, b"sleep 60 & echo started; echo oops >&2")

    assert agent.line() == "exit 1 0"
    assert agent.output(2) == b"started\n"
    assert agent.output(3) == b"oops\n"


def test_large_output_is_complete_when_the_end_is_told(agent: Agent) -> None:
    agent.execute(1, b"dd if=/dev/zero bs=50000 count=1 2>/dev/null")

    assert agent.line() == "exit 1 0"
    assert agent.output(2) == bytes(50000)


def test_relays_that_start_late_are_waited_for(shell: list[str], tmp_path: Path) -> None:
    text, begin = SCRIPT.read_text(), "relay() {\n"
    assert text.count(begin) == 1
    late = tmp_path / "late.sh"
    late.write_text(text.replace(begin, f"{begin}    sleep 0.3\n"))

    with running(Agent(shell, tmp_path, late)) as agent:
        for session in (1, 2):  # the second finds what the first noted on its ports
            agent.execute(session, b"echo out; echo err >&2")

            assert agent.line() == f"exit {session} 0"
            assert (agent.output(2), agent.output(3)) == (b"out\n", b"err\n")
