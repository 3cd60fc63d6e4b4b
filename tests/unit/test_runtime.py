"""Runtime directories: claiming, finding, staleness, names."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from minivmm import runtime
from minivmm.errors import HostError, NoSuchMachine, UsageError


@pytest.fixture(autouse=True)
def runtime_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("MINIVMM_RUNTIME_DIR", str(tmp_path / "run"))
    yield tmp_path / "run"


def listen(entry: runtime.MachineDir) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(entry.qmp_socket))
    server.listen()
    return server


def test_claimed_machine_is_found_by_name_and_as_the_only_one() -> None:
    entry = runtime.claim("vm1")

    with listen(entry):
        assert runtime.find("vm1") == entry
        assert runtime.find(None) == entry
        assert runtime.free_name() == "vm2"
    assert entry.pid_file.read_text() == f"{os.getpid()}\n"
    assert entry.path.stat().st_mode & 0o777 == 0o700


def test_a_running_name_cannot_be_claimed_again() -> None:
    with listen(runtime.claim("vm1")), pytest.raises(UsageError, match="running already"):
        runtime.claim("vm1")


def claim_and_die(name: str) -> runtime.MachineDir:
    """The directory that a process left behind which claimed it and was killed."""
    code = f"import os; from minivmm import runtime; runtime.claim({name!r}); os._exit(9)"
    subprocess.run([sys.executable, "-c", code], check=False)
    return runtime.machine_dir(name)


def test_a_starting_machine_is_not_taken_for_stale() -> None:
    entry = runtime.claim("vm1")

    assert entry.owned() and not entry.alive()
    assert runtime.running() == [entry]
    with pytest.raises(UsageError, match="running already"):
        runtime.claim("vm1")
    for name in ("vm1", None):
        with pytest.raises(NoSuchMachine, match="'vm1' is only starting"):
            runtime.find(name)
    entry.remove()
    assert runtime.running() == []


def test_a_reused_pid_does_not_keep_a_stale_directory() -> None:
    entry = claim_and_die("vm1")
    entry.pid_file.write_text(f"{os.getpid()}\n")

    assert runtime.running() == []


def test_a_stale_directory_is_replaced() -> None:
    entry = claim_and_die("vm1")
    listen(entry).close()

    assert runtime.claim("vm1") == entry
    assert not entry.qmp_socket.exists()


def test_listing_removes_what_is_dead() -> None:
    entry = claim_and_die("vm1")
    assert entry.path.exists()

    assert runtime.running() == []
    assert not entry.path.exists()


def test_missing_machines_are_named() -> None:
    with pytest.raises(NoSuchMachine, match="'nope'"):
        runtime.find("nope")
    with pytest.raises(NoSuchMachine, match="0 VMs"):
        runtime.find(None)


def test_other_things_in_the_runtime_directory_are_left_alone(runtime_dir: Path) -> None:
    precious = runtime_dir / "photos" / "cat.jpg"
    precious.parent.mkdir(parents=True)
    precious.write_text("meow")

    assert runtime.running() == []
    with pytest.raises(NoSuchMachine):
        runtime.find("photos")
    with pytest.raises(HostError, match="in the way"):
        runtime.claim("photos")

    assert precious.read_text() == "meow"


@pytest.mark.parametrize("place", ["file/below", "/proc/minivmm"])
def test_an_impossible_runtime_directory_is_one_line(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINIVMM_RUNTIME_DIR", str(tmp_path / place))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / place))

    with pytest.raises(HostError, match="set MINIVMM_RUNTIME_DIR"):
        runtime.running()
    with pytest.raises(HostError, match="set XDG_CACHE_HOME"):
        runtime.cache_root()


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", "x" * 65, "a b"])
def test_names_that_make_bad_paths_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="not usable"):
        runtime.machine_dir(name)


def test_too_long_socket_paths_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIVMM_RUNTIME_DIR", str(tmp_path / ("d" * 100)))

    with pytest.raises(HostError, match="MINIVMM_RUNTIME_DIR"):
        runtime.machine_dir("vm1")
