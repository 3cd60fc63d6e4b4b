"""A real lab, started once: what `minivmm lab -- CMD` promises."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from minivmm.errors import HostError
from minivmm.guest.kernels import DEFAULT_VERSION, Kernel, fetched, is_version_of
from minivmm.lab.lab import MARK, RUNTIME_DIR, Lab

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(300),
    pytest.mark.skipif(MARK in os.environ, reason="this is the lab"),
]

KILLED = """
import os, sys
from pathlib import Path
from minivmm.guest.kernels import Kernel
from minivmm.lab import lab
def tell(self, timeout):
    print(*(p.pid for p in machines[0]._processes), flush=True)
    os.read(0, 1)
machines = []
start = lab.OuterMachine.__init__
def keep(self, *args, **keys):
    start(self, *args, **keys)
    machines.append(self)
lab.OuterMachine.__init__ = keep
lab.Link.wait_ready = tell
lab.Lab(Kernel(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
"""


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    for found in fetched():
        if is_version_of(DEFAULT_VERSION, found.release):
            return found
    pytest.skip("no kernel for the lab: run `minivmm kernel fetch`")


@pytest.fixture(scope="module")
def lab(kernel: Kernel) -> Iterator[Lab]:
    with Lab(kernel) as running:
        yield running


def run(
    lab: Lab, script: str, data: bytes = b"", cwd: str | None = None
) -> tuple[int, bytes, bytes]:
    """Run a shell script: status, stdout, stderr."""
    with (
        tempfile.TemporaryFile() as stdin,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        stdin.write(data)
        stdin.seek(0)
        status = lab.run(
            ["sh", "-c", script],
            cwd=cwd,
            stdin=stdin.fileno(),
            stdout=out.fileno(),
            stderr=err.fileno(),
        )
        out.seek(0)
        err.seek(0)
        return status, out.read(), err.read()


def test_status_and_streams_come_back(lab: Lab) -> None:
    assert run(lab, "cat; echo oops >&2; exit 7", b"in") == (7, b"in", b"oops\n")


def test_a_megabyte_comes_back_unchanged(lab: Lab) -> None:
    data = os.urandom(1 << 20)

    assert run(lab, "cat", data) == (0, data, b"")


def test_directory_and_environment_are_ours(lab: Lab, tmp_path: Path) -> None:
    _, out, _ = run(lab, f'pwd; echo "$PATH"; echo ${MARK} $MINIVMM_RUNTIME_DIR', cwd=str(tmp_path))

    assert out.decode().splitlines() == [str(tmp_path), os.environ["PATH"], f"1 {RUNTIME_DIR}"]


def test_files_written_inside_are_here(lab: Lab, tmp_path: Path) -> None:
    run(lab, "echo content >file", cwd=str(tmp_path))

    assert (tmp_path / "file").read_text() == "content\n"


def test_kvm_is_there_with_nested_paging(lab: Lab, kernel: Kernel) -> None:
    script = "uname -r; cat /sys/module/kvm_amd/parameters/npt; exec 3<>/dev/kvm && echo opened"

    _, out, _ = run(lab, script)

    assert out.decode().split() == [kernel.release, "Y", "opened"]


def test_clock_source_stays_the_tsc(lab: Lab) -> None:
    script = "cat /sys/devices/system/clocksource/clocksource0/current_clocksource"

    assert run(lab, script)[1] == b"tsc\n"


def test_system_directories_are_the_machines_own(lab: Lab) -> None:
    status, out, _ = run(lab, "cd /sys/kernel/debug/kvm && ls exits && ls -A /run /dev/shm")

    assert (status, out.split()) == (0, [b"exits", b"/dev/shm:", b"/run:"])


def test_unix_socket_inside_is_reachable(lab: Lab, tmp_path: Path) -> None:
    script = (
        "import socket; s = socket.socket(socket.AF_UNIX); s.bind('/run/x.sock'); s.listen();"
        "c = s.accept()[0]; c.sendall(c.recv(100).upper()); c.close()"
    )
    lab.forward(tmp_path / "here.sock", "/run/x.sock", patience=60)
    server = threading.Thread(target=lab.run, args=([sys.executable, "-S", "-c", script],))
    server.start()

    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(str(tmp_path / "here.sock"))
        client.sendall(b"hello")
        answer = client.recv(100)

    server.join()
    assert answer == b"HELLO"


def test_kernel_that_cannot_start_is_reported(kernel: Kernel, tmp_path: Path) -> None:
    nonsense = tmp_path / "vmlinuz"
    nonsense.write_bytes(b"\x7fELF nonsense")

    with pytest.raises(HostError, match=r"lab machine lost.*qemu-system"):
        Lab(Kernel(kernel.release, nonsense, kernel.modules))


def test_killed_parent_leaves_nothing(kernel: Kernel) -> None:
    words = [kernel.release, str(kernel.image), str(kernel.modules)]
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        running = [Path(f"/proc/{pid}").exists() for pid in pids]
        parent.send_signal(signal.SIGKILL)

    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)

    assert running == [True, True]
    assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    """True while the process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
