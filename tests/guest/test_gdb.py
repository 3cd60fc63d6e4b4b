"""Debian's gdb on a real kernel: a breakpoint in it, its memory, steps; and many at its console."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Guest, minivmm, start

CALL = "ksys_sync"
"""Called by sync(2), and by nobody else in an idle guest."""


@pytest.fixture(scope="module", params=("6.12",))
def kernel(request: pytest.FixtureRequest) -> str:
    """One is enough: what a kernel does under a debugger is the same."""
    return str(request.param)


@pytest.fixture(scope="module")
def socket_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gdb") / "gdb.sock"


@pytest.fixture(scope="module")
def guest(kernel: str, socket_path: Path) -> Iterator[Guest]:
    """Two CPUs, its kernel where its symbols say."""
    with Guest("-k", kernel, "-p", "2", "-a", "nokaslr", f"--gdb=unix:{socket_path}") as started:
        yield started


@pytest.fixture(scope="module")
def symbols(guest: Guest) -> dict[str, int]:
    lines = guest.shell(
        f"echo 0 > /proc/sys/kernel/kptr_restrict; grep -E ' ({CALL}|linux_banner)$' /proc/kallsyms"
    )
    return {name: int(address, 16) for address, _, name in map(str.split, lines.splitlines())}


def gdb(socket_path: Path, *lines: str) -> str:
    """What gdb prints that is connected and told this."""
    words = ["gdb", "-q", "-nx", "-batch"]
    for line in ("set confirm off", "set pagination off", f"target remote {socket_path}", *lines):
        words += ["-ex", line]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout + done.stderr


def test_gdb_breaks_on_a_kernel_symbol_steps_reads_and_leaves(
    guest: Guest, kernel: str, socket_path: Path, symbols: dict[str, int]
) -> None:
    before = guest.shell("uname -v")
    guest.shell("setsid sh -c 'while sync; do sleep 1; done' <&- >/dev/null 2>&1 &")

    said = gdb(
        socket_path,
        f"x/s {symbols['linux_banner']:#x}",
        f"break *{symbols[CALL]:#x}",
        "continue",
        'printf "hit %#lx\\n", $rip',
        "info threads",
        "stepi",
        'printf "stepped %#lx\\n", $rip',
        f"x/2xb {symbols[CALL]:#x}",
        "info registers cr0 cr3 efer gs_base",
        "monitor info status",
        "continue",
        'printf "again %#lx\\n", $rip',
        "delete",
        "detach",
    )

    assert f'"Linux version {kernel}.' in said, said
    assert f"hit {symbols[CALL]:#x}" in said, said
    assert "Thread 2 (cpu1)" in said
    stepped = int(said.split("stepped ")[1].split()[0], 16)
    assert 0 < stepped - symbols[CALL] <= 15, said
    assert "[ PE MP ET NE WP AM PG ]" in said, said
    assert "VM status: paused (debug)" in said
    assert f"again {symbols[CALL]:#x}" in said, said
    # It is as it was: the code, the state, and no complaint of a watchdog.
    assert guest.qmp.execute("query-status")["status"] == "running"
    assert guest.shell("sync; uname -v") == before
    assert guest.shell("dmesg | grep -icE 'lockup|stall|oops|int3' || true") == "0"


def test_a_gdb_that_is_killed_at_a_breakpoint_leaves_a_guest_that_runs(
    guest: Guest, socket_path: Path, symbols: dict[str, int]
) -> None:
    words = ["gdb", "-q", "-nx", "-ex", f"target remote {socket_path}"]
    words += ["-ex", f"break *{symbols[CALL]:#x}", "-ex", "continue"]
    child = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert child.stdout is not None
    for line in child.stdout:
        if "hit Breakpoint" in line:
            break
    assert guest.qmp.execute("query-status")["status"] == "debug"

    child.kill()
    child.communicate()

    guest.wait_until(lambda: guest.qmp.execute("query-status")["running"], "running guest")
    assert guest.shell("sync; echo fine") == "fine"


def test_many_watch_the_console_and_any_of_them_types(guest: Guest, tmp_path: Path) -> None:
    watcher, typist = tmp_path / "watcher", tmp_path / "typist"
    keys = tmp_path / "keys"
    keys.write_bytes(b"echo to$((40+2))all\r")

    with watcher.open("wb") as seen, typist.open("wb") as own, keys.open("rb") as typed:
        words = ["console", guest.name, "-q"]
        children = [
            start([*words, "-r"], seen.fileno(), seen.fileno()),
            start(words, own.fileno(), own.fileno(), source=typed.fileno()),
        ]
        try:
            for file in (watcher, typist):
                guest.wait_until(lambda f=file: b"to42all" in f.read_bytes(), "output")  # type: ignore[misc]
            assert "to42all" in guest.output()
        finally:
            for child in children:
                child.terminate()
                child.join()

    assert minivmm("console", "nobody").returncode == 3
