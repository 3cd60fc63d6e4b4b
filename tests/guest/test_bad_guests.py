"""Guests that never become useful, and users in a hurry: one line, the right status, no remains."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest
from harness import Finished, minivmm, start

from minivmm.cli import run as minivmm_run
from minivmm.guest.initramfs import Archive
from minivmm.testing.tiny_kernel import FOREVER, INVALID, bzimage


@pytest.fixture
def runs(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory of its own, which every boot here must leave empty."""
    path = tmp_path_factory.mktemp("run")
    monkeypatch.setenv("MINIVMM_RUNTIME_DIR", str(path))
    return path


def image(path: Path, code: bytes) -> str:
    """A file with a kernel of nothing but `code`."""
    path.write_bytes(bzimage(code))
    return str(path)


def boot(*words: str) -> Finished:
    return minivmm("boot", "--accel", "kvm", *words)


def test_a_kernel_that_triple_faults_at_once_is_134(runs: Path, tmp_path: Path) -> None:
    done = boot("-k", image(tmp_path / "bad", INVALID), "--", "true")

    assert done.returncode == 134
    assert done.stderr.startswith("minivmm: the guest triple-faulted: cpu0 rip=")
    assert done.stderr.count("\n") == 1
    assert list(runs.iterdir()) == []


def test_a_kernel_that_never_starts_is_not_waited_for_forever(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = image(tmp_path / "forever", FOREVER)
    monkeypatch.setattr(minivmm_run, "READY_TIMEOUT", 2.0)

    timed_out = boot("-k", kernel, "--timeout", "1s")
    never_ready = boot("-k", kernel, "--", "true")

    assert (timed_out.returncode, never_ready.returncode) == (124, 134)
    assert "not finished after 1 s" in timed_out.stderr
    assert "not ready for a command after 2 s" in never_ready.stderr
    assert list(runs.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT])
def test_signals_at_any_moment_leave_nothing(
    runs: Path, tmp_path: Path, number: signal.Signals
) -> None:
    kernel = image(tmp_path / "forever", FOREVER)
    for moment in (0.1, 0.3, 0.5, 0.7, 0.9, 1.2):
        with tempfile.TemporaryFile() as out:
            child = start(["boot", "--accel", "kvm", "-k", kernel], out.fileno(), out.fileno())
            child.join(moment)
            assert child.pid is not None
            os.kill(child.pid, number)
            child.join(20)
            out.seek(0)
            said = out.read().decode()

        assert list(runs.iterdir()) == [], moment
        if child.exitcode != -number:  # the interpreter was not even up
            assert child.exitcode == 130, said
            assert said.startswith("minivmm: ") and said.count("\n") == 1


def test_a_guest_without_init_panics_with_134(runs: Path, tmp_path: Path) -> None:
    archive = Archive()
    archive.add_directory("/dev")
    empty = tmp_path / "empty.cpio"
    empty.write_bytes(archive.build())

    done = boot("-i", str(empty), "-a", "root=/dev/none", "--", "true")

    assert done.returncode == 134
    assert "guest panicked: VFS: Unable to mount root fs" in done.stderr.splitlines()[-1]
    assert list(runs.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        (("no-such-command",), 127, "not found"),
        (("/etc/passwd",), 126, "denied"),
        (("sh", "-c", "poweroff -f; sleep 60"), 134, "powered off before the command ended"),
    ],
)
def test_commands_that_cannot_run_have_the_shells_statuses(
    runs: Path, command: tuple[str, ...], status: int, said: str
) -> None:
    done = boot("--", *command)

    assert done.returncode == status
    assert said in done.stderr
    assert list(runs.iterdir()) == []
