"""Raw mode and its end, the Ctrl-A escapes, and output that cannot keep up."""

import os
import subprocess
import sys
import termios
import textwrap
import threading
import time
from collections.abc import Callable, Iterator

import pexpect
import pytest

from minivmm.cli import output
from minivmm.cli.output import Output
from minivmm.cli.terminal import Escapes, RawTerminal, in_foreground
from minivmm.cli.text import parse_duration
from minivmm.errors import UsageError


def escapes(*pieces: bytes) -> list[tuple[str, bytes]]:
    parser = Escapes()
    return [event for piece in pieces for event in parser.feed(piece)]


def test_keys_pass_and_escapes_are_told_apart() -> None:
    assert escapes(b"ls\r") == [("", b"ls\r")]
    assert escapes(b"a\x01xb") == [("", b"a"), ("x", b""), ("", b"b")]


def test_ctrl_a_itself_is_sent_by_a_second_one_or_a() -> None:
    assert escapes(b"\x01\x01\x01a.") == [("", b"\x01\x01.")]


def test_an_escape_may_come_in_two_pieces() -> None:
    assert escapes(b"a\x01", b"hb") == [("", b"a"), ("h", b""), ("", b"b")]


@pytest.fixture
def terminal() -> Iterator[int]:
    master, slave = os.openpty()
    yield slave
    os.close(master)
    os.close(slave)


def test_raw_mode_is_left_as_found(terminal: int) -> None:
    before = termios.tcgetattr(terminal)

    with RawTerminal(terminal):
        lflag = termios.tcgetattr(terminal)[3]
        assert not lflag & (termios.ECHO | termios.ICANON | termios.ISIG)
        assert termios.tcgetattr(terminal)[1] & termios.OPOST
    assert termios.tcgetattr(terminal) == before


def test_raw_mode_ends_with_an_exception(terminal: int) -> None:
    before = termios.tcgetattr(terminal)

    with pytest.raises(RuntimeError), RawTerminal(terminal):
        raise RuntimeError

    assert termios.tcgetattr(terminal) == before


def test_no_terminal_no_effect() -> None:
    reading, writing = os.pipe()
    with RawTerminal(reading):
        pass
    assert in_foreground(reading)
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("end", ["sys.exit(3)", "os.kill(os.getpid(), signal.SIGTERM)"])
def test_the_terminal_comes_back_however_the_process_ends(end: str) -> None:
    """Without the context manager's help: atexit, and SIGTERM as main.run handles it."""
    code = f"""
        import os, signal, sys, time
        from minivmm.cli import main
        from minivmm.cli.terminal import RawTerminal, in_foreground
        signal.signal(signal.SIGTERM, main._on_signal)
        terminal = RawTerminal(0)
        terminal.__enter__()
        print("raw", flush=True)
        {end}
        time.sleep(10)
    """
    child = pexpect.spawn(sys.executable, ["-c", textwrap.dedent(code)], timeout=20)
    before = termios.tcgetattr(child.child_fd)
    child.expect("raw")
    child.expect(pexpect.EOF)
    child.wait()

    assert termios.tcgetattr(child.child_fd) == before
    child.close()


def test_output_arrives_whole_and_in_order() -> None:
    reading, writing = os.pipe()
    written = Output(writing)
    for number in range(1000):
        written.write(b"%d\n" % number)
    written.close()
    os.close(writing)

    with open(reading, "rb") as file:  # noqa: PTH123 - a descriptor
        assert file.read() == b"".join(b"%d\n" % number for number in range(1000))


def test_output_that_nobody_reads_is_dropped_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "BACKLOG", 1 << 18)
    reading, writing = os.pipe()
    written = Output(writing)
    filling = b"f" * (1 << 18)
    written.write(filling)
    wait_until_taken(written)  # the pipe is too small for it: the writing thread is stuck

    for _ in range(100):
        written.write(b"x" * 8192)
    arrived = read_beside(reading)
    while written.waiting():
        time.sleep(0.01)
    written.write(b"end")
    written.close()
    os.close(writing)

    kept = (1 << 18) // 8192
    assert arrived() == filling + b"x" * 8192 * kept + output.LOST + b"end"


def test_output_lost_at_the_very_end_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "BACKLOG", 10)
    reading, writing = os.pipe()
    written = Output(writing)

    written.write(b"x" * 11)
    written.close()
    os.close(writing)

    with open(reading, "rb") as file:  # noqa: PTH123 - a descriptor
        assert file.read() == output.LOST


def wait_until_taken(written: Output) -> None:
    """Return once the writing thread has everything that was written in its hands."""
    while written._pending:  # no public face tells taken from written
        time.sleep(0.001)


def read_beside(reading: int) -> Callable[[], bytes]:
    """Read `reading` to its end in a thread; the result waits for it."""
    arrived = bytearray()

    def read() -> None:
        with open(reading, "rb") as file:
            arrived.extend(file.read())

    def result() -> bytes:
        reader.join()
        return bytes(arrived)

    reader = threading.Thread(target=read)
    reader.start()
    return result


def test_a_reader_that_left_ends_the_output() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    gone: list[bool] = []
    written = Output(writing, lambda: gone.append(True))
    written.write(b"x")
    written.close()
    os.close(writing)

    assert gone == [True]


@pytest.mark.parametrize(
    ("text", "seconds"), [("30", 30), ("30s", 30), ("1.5m", 90), ("500ms", 0.5), ("1h", 3600)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "-1", "1d", "1 s"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(UsageError, match="not understood"):
        parse_duration(text)


def test_interrupted_control_verbs_are_status_130() -> None:
    code = (
        "import signal, os; from minivmm.cli import main, list_\n"
        "list_.run = lambda args: os.kill(os.getpid(), signal.SIGINT)\n"
        "raise SystemExit(main.run(['list']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)

    assert done.returncode == 130
    assert done.stderr == "minivmm: interrupted\n"
