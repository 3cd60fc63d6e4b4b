"""`minivmm ui` and `boot --ui` as processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from minivmm import runtime
from minivmm.cli.boot import options_from, prepare
from minivmm.cli.main import own_words, parser_for, run
from minivmm.cli.viewer import Viewer
from minivmm.errors import ExitStatus, UsageError
from minivmm.runtime import MachineDir
from minivmm.testing.fake_machine import FakeMachine

Process = subprocess.Popen[str]


@pytest.fixture
def ui() -> Iterator[Callable[..., Process]]:
    """Starts `minivmm ui`."""
    started: list[Process] = []

    def start(*words: str) -> Process:
        process = subprocess.Popen(
            [sys.executable, "-m", "minivmm", "ui", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def url_of(process: Process) -> str:
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())
    assert told["schema"] == 1
    return str(told["url"])


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        content: bytes = answer.read()
    return content


@pytest.mark.usefixtures("live")
def test_the_page_is_served_on_loopback_until_ctrl_c(ui: Callable[..., Process]) -> None:
    process = ui("vm1", "--json")
    url = url_of(process)

    assert urlsplit(url).hostname == "127.0.0.1"
    assert b"<title>minivmm</title>" in fetch(url)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)

    assert process.returncode == 0
    assert said == f"minivmm: live view of vm1: {url}\n"


@pytest.mark.usefixtures("live")
def test_two_servers_have_different_tokens(ui: Callable[..., Process]) -> None:
    urls = [url_of(ui("--json")) for _ in range(2)]

    assert len({urlsplit(url).path for url in urls}) == 2


def test_it_ends_with_the_vm(
    ui: Callable[..., Process], live: MachineDir, machine: FakeMachine
) -> None:
    process = ui("vm1", "--json")
    url_of(process)
    with machine.lock:
        machine.request_quit()
    _, said = process.communicate(timeout=20)

    assert process.returncode == 0
    assert said.splitlines()[-1] == "minivmm: vm1: the VM has ended"


@pytest.mark.usefixtures("runtime_root")
def test_a_vm_that_is_only_starting_is_waited_for(ui: Callable[..., Process]) -> None:
    directory = runtime.claim("vm1")
    process = ui("vm1")
    time.sleep(1)
    assert process.poll() is None
    directory.remove()
    _, said = process.communicate(timeout=20)

    assert process.returncode == ExitStatus.NOT_RUNNING
    assert said == "minivmm: no VM named 'vm1' is running (see `minivmm list`)\n"


@pytest.mark.usefixtures("live")
def test_addresses_that_cannot_be_listened_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ui", "--listen", "1:2:3"]) == ExitStatus.USAGE
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run(["ui", "--listen", str(port)]) == ExitStatus.FAILED
    assert run(["ui", "--listen", "192.0.2.1:9"]) == ExitStatus.FAILED

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "is not understood" in lines[0]
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in lines[1]
    assert "cannot listen on 192.0.2.1 port 9" in lines[2]


@pytest.mark.usefixtures("runtime_root")
def test_no_vm_no_view() -> None:
    assert run(["ui", "nope"]) == ExitStatus.NOT_RUNNING
    assert run(["ui"]) == ExitStatus.NOT_RUNNING


# -- boot --ui -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "ui", "kernel"),
    [
        (["--ui", "6.12"], "", "6.12"),
        (["--ui=8000"], "8000", None),
        (["6.12"], None, "6.12"),
    ],
)
def test_boot_takes_an_address_only_behind_an_equals_sign(
    words: list[str], ui: str | None, kernel: str | None
) -> None:
    line = ["boot", *words]
    args = parser_for(line).parse_args(prepare(own_words(line)))
    args.command = []

    assert options_from(args).ui == ui
    assert args.kernel_word == kernel


def test_boot_complains_of_a_bad_address_before_anything_else() -> None:
    line = ["boot", "--ui=1:2:3"]
    args = parser_for(line).parse_args(line)
    args.command = []

    with pytest.raises(UsageError, match="listen address '1:2:3' is not understood"):
        options_from(args)


def test_a_viewer_ends_with_its_vm(
    live: MachineDir, machine: FakeMachine, capfd: pytest.CaptureFixture[str]
) -> None:
    with Viewer("vm1", "") as viewer:
        deadline = time.monotonic() + 20
        said = ""
        while "http://" not in said:
            said += capfd.readouterr().err
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert os.getpgid(viewer.pid) != os.getpgid(0), "a Ctrl-C at the terminal is not for it"
        with machine.lock:
            machine.request_quit()

    assert said.startswith("minivmm: live view of vm1: http://127.0.0.1:")
    assert capfd.readouterr().err == ""
    assert not Path(f"/proc/{viewer.pid}").exists()
