"""`minivmm snapshot` and `boot --restore`: words, messages and exit statuses."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minivmm.cli import main
from minivmm.control import snapshot_commands
from minivmm.errors import ExitStatus
from minivmm.snapshot.desk import Desk
from minivmm.snapshot.taken import Progress
from minivmm.testing.fake_kvm import FakeSystem
from minivmm.testing.loop_thread import LoopThread
from minivmm.testing.tiny_kernel import tiny_image
from minivmm.units import MIB


class FakeDesk:
    """Ends every snapshot as the test says; None lets it go on until it is cancelled."""

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self.end: Progress | None = Progress("completed", 512 * MIB, 84 * MIB, 2, 0.034, 1.2)
        self.asked: list[object] = []
        self.begun = threading.Event()

    def begin(self, directory: str, base: str | None, *, track: bool) -> None:
        self.asked.append((directory, base, track))
        self.progress = self.end or Progress()
        self.begun.set()

    def cancel(self) -> None:
        self.progress = Progress("cancelled", error="the snapshot was cancelled")


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> FakeDesk:
    made = FakeDesk()
    monkeypatch.setattr(snapshot_commands, "_desk", lambda _context: made)
    return made


@pytest.mark.usefixtures("live")
def test_it_says_what_was_written_and_how_long_the_guest_stood(
    desk: FakeDesk, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["snapshot", "vm1", str(tmp_path / "s")]) == 0
    assert capfd.readouterr().err == (
        f"minivmm: vm1 is saved in {tmp_path / 's'}: 84M written for 512M of memory in 1.2 s;"
        " the guest stood still for 34 ms\n"
    )
    assert desk.asked == [(str(tmp_path / "s"), None, False)]


@pytest.mark.usefixtures("live")
def test_json_and_wishes(
    desk: FakeDesk,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.run(["snapshot", "s", "--base", "r", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {
        "schema": 1,
        "name": "vm1",
        "directory": str(tmp_path / "s"),
        "plugged": 512 * MIB,
        "written": 84 * MIB,
        "passes": 2,
        "pause": 0.034,
        "seconds": 1.2,
    }
    assert desk.asked == [(str(tmp_path / "s"), str(tmp_path / "r"), False)]


@pytest.mark.usefixtures("live")
def test_a_failure_is_one_line(desk: FakeDesk, capfd: pytest.CaptureFixture[str]) -> None:
    desk.end = Progress("failed", error="there is no room for the snapshot")
    assert main.run(["snapshot", "s"]) == ExitStatus.FAILED
    assert capfd.readouterr().err == "minivmm: there is no room for the snapshot\n"


@pytest.mark.usefixtures("live")
def test_ctrl_c_leaves_no_snapshot(desk: FakeDesk, capfd: pytest.CaptureFixture[str]) -> None:
    desk.end = None

    def interrupt() -> None:
        desk.begun.wait(5)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    status = main.run(["snapshot", "s"])
    thread.join()
    assert status == 130
    assert capfd.readouterr().err == "minivmm: no snapshot was taken; vm1 runs on\n"


@pytest.mark.parametrize("words", [["a", "b", "c"], ["--verify", "a", "b"]])
def test_too_many_words(words: list[str]) -> None:
    assert main.run(["snapshot", *words]) == ExitStatus.USAGE


@pytest.fixture
def saved(tmp_path: Path) -> Iterator[Path]:
    """A small snapshot of a machine on a fake KVM."""
    from minivmm.machine import Machine
    from minivmm.machine_spec import MachineSpec

    with LoopThread() as thread:
        spec = MachineSpec(memory=64 * MIB)
        machine = thread.run(
            lambda: Machine(
                spec, tiny_image(), FakeSystem(), thread.loop, console=lambda _data: None
            )
        )
        desk = Desk(machine)
        ended = threading.Event()
        machine.on_event.append(lambda name, data: _note(name, data, ended))

        def begin() -> None:
            with thread.loop.lock:
                machine.start()
                desk.begin(str(tmp_path / "s"))

        thread.run(begin)
        assert ended.wait(10)
        assert desk.progress is not None
        assert desk.progress.status == "completed"
        thread.run(machine.close)
    yield tmp_path / "s"


def _note(name: str, data: dict[str, Any], ended: threading.Event) -> None:
    if name == "X_MINIVMM_SNAPSHOT" and data["status"] != "active":
        ended.set()


def test_verify(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main.run(["snapshot", "--verify", str(saved)]) == 0
    assert capfd.readouterr().err == f"minivmm: {saved} is in order\n"
    ram = saved / "ram"
    ram.chmod(0o600)
    with ram.open("r+b") as file:
        file.seek(16 * MIB)
        file.write(b"damage")
    assert main.run(["snapshot", "--verify", str(saved)]) == ExitStatus.FAILED
    assert "is damaged in 1 of its pieces of 2M" in capfd.readouterr().err


def test_restore_shows_the_machine_and_takes_a_name(
    saved: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["boot", "--restore", str(saved), "-n", "again", "--dry-run", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["name"], found["memory"]) == ("again", 64 * MIB)


@pytest.mark.parametrize("words", [["-m", "1G"], ["-k", "6.12"], ["--device", "virtio-rng-pci"]])
def test_restore_takes_no_other_machine(
    saved: Path, words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["boot", "--restore", str(saved), *words]) == 125
    assert "--restore brings its own machine" in capfd.readouterr().err


def test_restoring_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main.run(["boot", "--restore", str(tmp_path / "none")]) == 125
    assert capfd.readouterr().err.count("\n") == 1
