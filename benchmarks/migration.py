"""What a migration costs: time, bytes, and how long the guest stands still, idle and under load.

One Linux guest with 512 MiB plugged goes from process to process on this host, over a Unix socket;
where /dev/kvm cannot run it, that is in the lab. `scripts/bench migration` runs it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from minivmm.control.client import Client
from minivmm.errors import NoSuchMachine
from minivmm.runtime import machine_dir

MACHINE = ("-m", "256M", "--device", "virtio-mem-pci,id=vmem0,size=1G,requested-size=512M")
PATIENCE = 240.0
"""Seconds for a guest to boot in a lab, or for a process to begin to wait for one."""

FILL = "mount -t tmpfs none /mnt && dd if=/dev/urandom of=/mnt/x bs=1M count=256 2>/dev/null"
LOAD = "(while :; do head -c 8M /mnt/x >/mnt/y; done) >/dev/null 2>&1 </dev/null &"
MOVES = (
    ("idle", "", ()),
    ("compressed", "", ("--compress", "1")),
    ("under load", LOAD, ("--downtime", "2s")),
)
"""What is measured: its name, what the guest is told before, and how it is moved."""


def main() -> None:
    """Print a row for each move."""
    heading = ("", "seconds", "downtime ms", "sent MB", "rounds", "MB/s")
    print(" ".join(f"{word:>12}" for word in heading), flush=True)
    with ExitStack() as owned, tempfile.TemporaryDirectory() as place:
        name = boot(owned, "bench0")
        run("wait", name, "--ready", "--timeout", f"{PATIENCE:g}s")
        run("wait", name, "--requested", "--timeout", f"{PATIENCE:g}s")
        run("exec", name, "--", "sh", "-c", FILL)
        for number, (what, script, words) in enumerate(MOVES, 1):
            if script:
                run("exec", name, "--", "sh", "-c", script)
            uri = f"unix:{Path(place, str(number))}"
            there = boot(owned, f"bench{number}", "--incoming", uri)
            said = run("migrate", name, uri, "--bandwidth", "0", "--json", *words)
            show(what, json.loads(said))
            name = there


def show(what: str, found: dict[str, object]) -> None:
    """One row."""
    ram, seconds = found["ram"], float(str(found["total-time"])) / 1000
    assert isinstance(ram, dict)
    row = [
        what,
        f"{seconds:.2f}",
        str(found["downtime"]),
        f"{ram['transferred'] / 1e6:.0f}",
        str(ram["dirty-sync-count"]),
        f"{ram['normal-bytes'] / seconds / 1e6:.0f}",
    ]
    print(" ".join(f"{word:>12}" for word in row), flush=True)


def boot(owned: ExitStack, name: str, *words: str) -> str:
    """A process that has the machine, or waits for it; ended with `owned`."""
    command = [sys.executable, "-P", "-m", "minivmm.cli", "boot", "--accel", "kvm", "-q", *MACHINE]
    process = subprocess.Popen(
        [*command, "-n", name, *words], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    owned.callback(process.wait)
    owned.callback(process.kill)
    deadline = time.monotonic() + PATIENCE
    while not answers(name):
        assert time.monotonic() < deadline and process.poll() is None, f"{name} does not start"
        time.sleep(0.1)
    return name


def answers(name: str) -> bool:
    """Has it got as far as a guest, or as waiting for one?"""
    try:
        with Client(machine_dir(name).qmp_socket) as client:
            return client.execute("query-status")["status"] in ("running", "inmigrate")
    except NoSuchMachine:
        return False


def run(*words: str) -> str:
    """Output of the command line `words` of this minivmm, which must succeed."""
    command = [sys.executable, "-P", "-m", "minivmm.cli", *words]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout


if __name__ == "__main__":
    main()
