"""`boot --accel lab`, driven from the host as if the VM ran here; and nothing is left of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from minivmm.lab.lab import MARK

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(300),
    pytest.mark.skipif(MARK in os.environ, reason="this is the lab"),
]

MINIVMM = [sys.executable, "-m", "minivmm"]
DEVICE = "virtio-mem-pci,id=vmem0,size=4G,requested-size=0"


@pytest.fixture
def runtime_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    monkeypatch.setenv("MINIVMM_RUNTIME_DIR", str(path))
    return path


@pytest.fixture
def vm(runtime_dir: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A VM named "box" in a lab, ready for commands."""
    with (tmp_path / "console").open("wb") as console:
        process = subprocess.Popen(
            [*MINIVMM, "boot", "--accel", "lab", "-n", "box", "--device", DEVICE],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 60
        while not (runtime_dir / "box" / "qmp.sock").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        assert minivmm("exec", "box", "--timeout", "120s", "--", "true").returncode == 0
        yield process
    finally:
        process.kill()
        process.wait()


def minivmm(*words: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*MINIVMM, *words], input=data, capture_output=True, timeout=200)


def read(*words: str) -> dict[str, object]:
    done = minivmm(*words, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def descendants(pid: int) -> list[int]:
    """Pids of the children of `pid`, and of theirs."""
    words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [found for word in words for found in (int(word), *descendants(int(word)))]


def test_a_vm_in_the_lab_is_driven_from_the_host_and_leaves_nothing(
    vm: subprocess.Popen[bytes], runtime_dir: Path
) -> None:
    helpers = descendants(vm.pid)
    assert helpers

    machines = read("list")["machines"]
    assert isinstance(machines, list)
    assert [(entry["name"], entry["pid"]) for entry in machines] == [("box", vm.pid)]
    info = read("info", "box")
    assert (info["name"], info["status"], info["pid"]) == ("box", "running", vm.pid)

    grown = read("resize", "box", "1G", "--wait=60s")
    assert (grown["requested-size"], grown["size"]) == (1 << 30, 1 << 30)
    shrunk = read("resize", "+0", "--wait")
    assert shrunk["size"] == 1 << 30

    refused = minivmm("resize", "box", "3M")
    assert refused.returncode == 2
    assert refused.stderr == (
        b"minivmm: requested-size 3M is not a multiple of block-size 2M (nearest: 2M, 4M)\n"
    )

    data = bytes(range(256)) * 64
    echoed = minivmm("exec", "box", "--", "sh", "-c", "cat; echo oops >&2; exit 3", data=data)
    assert (echoed.returncode, echoed.stdout, echoed.stderr) == (3, data, b"oops\n")
    assert minivmm("exec", "box", "--", "no-such-command").returncode == 127

    again = minivmm("boot", "--accel", "lab", "-n", "box")
    assert again.returncode == 125
    assert b"running already" in again.stderr

    stopped = read("stop", "box")
    assert stopped["powered-off"] is True
    assert vm.wait(20) == 0
    assert list(runtime_dir.iterdir()) == []
    assert not any(Path(f"/proc/{pid}").exists() for pid in helpers)
    assert minivmm("info", "box").returncode == 3


def test_status_of_a_command_in_the_lab_comes_back(runtime_dir: Path) -> None:
    done = minivmm("boot", "--accel", "lab", "--", "sh", "-c", "exit 7")

    assert (done.returncode, done.stdout, done.stderr) == (7, b"", b"")
    assert list(runtime_dir.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ending_while_the_lab_starts_takes_its_processes_along(
    number: signal.Signals, runtime_dir: Path
) -> None:
    with subprocess.Popen(
        [*MINIVMM, "boot", "--accel", "lab", "-n", "box"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        helpers: list[int] = []
        while len(helpers) < 2 and process.poll() is None:
            helpers = descendants(process.pid)
            time.sleep(0.05)
        process.send_signal(number)
        assert process.stdout is not None
        said = process.stdout.read().decode()

    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in helpers) and time.monotonic() < deadline:
        time.sleep(0.05)

    assert len(helpers) >= 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in helpers)
    if number == signal.SIGTERM:
        assert (process.returncode, said) == (130, "minivmm: ended by SIGTERM\n")
    assert minivmm("list").returncode == 0
    assert list(runtime_dir.iterdir()) == []
