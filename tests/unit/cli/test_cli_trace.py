"""`minivmm trace` as its user sees it: VMs, files, filters, formats, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as pb

from minivmm import runtime
from minivmm.cli.main import run
from minivmm.control.trace_server import TraceServer
from minivmm.loop import EventLoop
from minivmm.testing.traced import Traced
from minivmm.tracing.file import TraceFile
from minivmm.unix_socket import listen


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    """Three plugged blocks."""
    loop, path = EventLoop(), tmp_path / "t.jsonl"
    with Traced() as traced, TraceFile(path, lambda _: None) as file:
        file.begin(traced.scene, loop)
        for block in range(3):
            traced.plug(block)
    loop.asyncio.close()
    return path


@pytest.fixture
def busy(runtime_root: Path) -> Iterator[runtime.MachineDir]:
    """A VM whose guest plugs a block now and then."""
    directory = runtime.claim("work")
    control = listen(directory.qmp_socket)
    control.listen()
    loop = EventLoop()
    thread = threading.Thread(target=loop.asyncio.run_forever)
    thread.start()
    with Traced() as traced:
        server = TraceServer(traced.scene, loop)
        started = server.start(directory.trace_socket)
        asyncio.run_coroutine_threadsafe(started, loop.asyncio).result(10)
        over = threading.Event()

        def plug() -> None:
            block = 0
            while not over.wait(0.02):
                with loop.lock:
                    traced.plug(block)
                block += 1

        guest = threading.Thread(target=plug)
        guest.start()
        yield directory
        over.set()
        guest.join()
        asyncio.run_coroutine_threadsafe(server.close(), loop.asyncio).result(10)
    loop.asyncio.call_soon_threadsafe(loop.asyncio.stop)
    thread.join()
    loop.asyncio.close()
    control.close()
    directory.remove()


def test_a_file_is_shown_decoded(trace_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["trace", str(trace_file), "--filter", ":answer"]) == 0

    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("# work, began ")
    assert [line.split("answer")[1].split(":")[0].strip() for line in lines] == [
        "#1 PLUG 1 block at 0x100000000 (2M)",
        "#2 PLUG 1 block at 0x100200000 (2M)",
        "#3 PLUG 1 block at 0x100400000 (2M)",
    ]


def test_a_file_as_json_is_what_it_was(
    trace_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["trace", "--json", str(trace_file)]) == 0

    assert capsys.readouterr().out == trace_file.read_text()


def test_a_file_for_perfetto(
    trace_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.pftrace"

    assert run(["trace", "--perfetto", str(out), str(trace_file)]) == 0

    trace = pb.Trace()
    trace.ParseFromString(out.read_bytes())
    flows = {one for packet in trace.packet for one in packet.track_event.flow_ids}
    assert flows == {1, 2, 3}
    assert "for https://ui.perfetto.dev" in capsys.readouterr().err


def test_a_file_that_was_cut_off_is_read_up_to_there(
    trace_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = trace_file.read_text()
    trace_file.write_text(whole[:-10])

    assert run(["trace", str(trace_file)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(whole.splitlines()) - 1


def test_a_damaged_file_is_read_up_to_the_damage(
    trace_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = trace_file.read_text().splitlines()
    trace_file.write_text("\n".join([*lines[:3], "\0garbage", *lines[3:]]) + "\n")

    assert run(["trace", str(trace_file)]) == 2
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 3
    assert shown.err == f"minivmm: {trace_file}, line 4: not an event of a trace\n"


@pytest.mark.parametrize(
    "text", ["", "garbage\n", "[1]\n", '{"schema": 1}\n', "\xff\n", "[" * 9999 + "\n"]
)
def test_other_files_are_refused(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other"
    path.write_text(text, encoding="latin-1")

    assert run(["trace", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"minivmm: {path}")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["./nowhere"], "trace nowhere cannot be read: No such file or directory"),
        (["--filter", "a:b:c"], "is not understood: SOURCE, SOURCE:NAME or :NAME"),
        (["--duration", "soon"], "duration 'soon' is not understood"),
        (["--json", "--perfetto", "x"], "--json and --perfetto exclude each other"),
    ],
)
def test_what_is_not_understood(
    runtime_root: Path, words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["trace", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line


def test_exits_of_a_file_cannot_be_asked_for(
    trace_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["trace", "--exits", str(trace_file)]) == 2
    assert "are for running VMs" in capsys.readouterr().err


def test_without_a_vm_there_is_none(runtime_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["trace"]) == 3
    assert run(["trace", "work"]) == 3


def test_a_place_that_cannot_be_written(
    trace_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["trace", "--perfetto", "/dev/full", str(trace_file)]) == 1
    assert "cannot write /dev/full: No space left" in capsys.readouterr().err


def test_a_running_vm_is_followed_for_a_while(
    busy: runtime.MachineDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["trace", "work", "--duration", "500ms", "--filter", ":answer", "--json"]) == 0

    header, *events = map(json.loads, capsys.readouterr().out.splitlines())
    assert header["name"] == "work"
    assert len(events) > 3
    assert {event["name"] for event in events} == {"answer"}


def test_a_running_vm_for_perfetto(
    busy: runtime.MachineDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "live.pftrace"

    assert run(["trace", "--duration", "300ms", "--perfetto", str(out)]) == 0

    trace = pb.Trace()
    trace.ParseFromString(out.read_bytes())
    assert any(packet.track_event.flow_ids for packet in trace.packet)


def test_ctrl_c_ends_it_without_a_word(busy: runtime.MachineDir, tmp_path: Path) -> None:
    out = tmp_path / "live.pftrace"
    for words in (["--filter", ":answer"], ["--perfetto", str(out)]):
        child = subprocess.Popen(
            [sys.executable, "-m", "minivmm.cli", "trace", str(busy.name), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        if out.name not in words[-1]:
            child.stdout.readline()
        else:
            deadline = time.monotonic() + 20
            while not out.exists():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            time.sleep(0.2)
        child.send_signal(signal.SIGINT)
        _, complaints = child.communicate(timeout=20)
        assert child.returncode == 0, complaints
        assert "Traceback" not in complaints
    trace = pb.Trace()
    trace.ParseFromString(out.read_bytes())
    assert any(packet.track_event.flow_ids for packet in trace.packet)
