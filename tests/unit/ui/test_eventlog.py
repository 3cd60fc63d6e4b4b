"""The event log: what is kept, every step on demand, bounded, in order."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minivmm.control.trace_server import TraceServer
from minivmm.errors import HostError
from minivmm.loop import EventLoop
from minivmm.testing.traced import Traced
from minivmm.ui.eventlog import SIZE, EventLog


def kept(time: int, name: str = "tick", **fields: object) -> dict[str, object]:
    """An event as x-minivmm-view has it."""
    return {"time": time, "source": "vmem0", "name": name, "fields": fields}


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    log = EventLog(tmp_path / "trace.sock")
    yield log
    log.close()


@pytest.fixture
def plug(tmp_path: Path) -> Iterator[Callable[[int], None]]:
    """The guest of a machine with a trace socket: plugs a block."""
    loop = EventLoop()
    thread = threading.Thread(target=loop.asyncio.run_forever)
    thread.start()
    with Traced() as traced:
        server = TraceServer(traced.scene, loop)

        def run(coroutine: object) -> None:
            asyncio.run_coroutine_threadsafe(coroutine, loop.asyncio).result(10)  # type: ignore[arg-type]

        def plug(block: int) -> None:
            with loop.lock:
                traced.plug(block)

        run(server.start(tmp_path / "trace.sock"))
        yield plug
        run(server.close())
    loop.asyncio.call_soon_threadsafe(loop.asyncio.stop)
    thread.join()
    loop.asyncio.close()


def wait_for(log: EventLog, name: str) -> None:
    deadline = time.monotonic() + 10
    while name not in [line.name for line in log.since(0)]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_events_become_lines_with_the_time_of_day(log: EventLog) -> None:
    now = time.time()

    log.take([kept(7_000_000), kept(9_500_000, "resize", **{"requested-size": 4096})], 10_000_000)
    log.take([], 11_000_000)

    first, second = log.since(0)
    assert (first.number, first.source, first.name) == (1, "vmem0", "tick")
    assert abs(first.wall - (now - 3)) < 1
    assert 2.4 < second.wall - first.wall < 2.6
    assert log.since(1) == [second]
    assert log.since(2) == []
    assert log.after == 11_000_000


def test_old_lines_give_way(log: EventLog) -> None:
    log.take([kept(n) for n in range(SIZE + 10)], SIZE + 10)

    assert [line.number for line in log.since(0)] == list(range(11, SIZE + 11))
    assert [line.number for line in log.since(SIZE + 8)] == [SIZE + 9, SIZE + 10]


def test_every_step_comes_from_the_trace(log: EventLog, plug: Callable[[int], None]) -> None:
    log.want_every_step(True)
    plug(0)
    wait_for(log, "interrupt")
    log.take([kept(1)], 1)

    names = [line.name for line in log.since(0)]
    assert log.every_step
    for step in ("kick", "chain", "request", "answer", "used", "interrupt"):
        assert step in names
    assert "tick" not in names, "nothing is told twice"
    answer = next(line for line in log.since(0) if line.name == "answer")
    assert "PLUG 1 block at 0x" in answer.text and ": ACK" in answer.text
    assert abs(answer.wall - time.time()) < 5

    log.want_every_step(False)
    count = len(log.since(0))
    plug(1)
    log.take([kept(2)], 2)

    assert [line.name for line in log.since(count)] == ["tick"]


def test_without_a_trace_socket_what_is_kept_goes_on(log: EventLog) -> None:
    with pytest.raises(HostError, match="cannot be followed: No such file"):
        log.want_every_step(True)

    assert not log.every_step
    log.take([kept(1)], 1)
    assert len(log.since(0)) == 1


@pytest.mark.parametrize("said", [b"", b"{}\n", b"[]\n", b"\xff\n", b'{"clock": {"wall": "x"}}\n'])
def test_a_socket_that_is_no_trace(log: EventLog, tmp_path: Path, said: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "trace.sock"))
        listener.listen()

        def answer() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(100)
                client.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(HostError, match="does not tell of its trace"):
            log.want_every_step(True)
        thread.join()


def test_the_end_of_the_trace_is_the_end_of_every_step(log: EventLog, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "trace.sock"))
        listener.listen()

        def answer() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(100)
                client.sendall(b'{"clock": {"wall": 5}}\nnot json\n')

        thread = threading.Thread(target=answer)
        thread.start()
        log.want_every_step(True)
        thread.join()
        deadline = time.monotonic() + 10
        while log.every_step:
            assert time.monotonic() < deadline
            time.sleep(0.01)
