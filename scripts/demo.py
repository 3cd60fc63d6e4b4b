"""The demo behind scripts/demo: one guest, four sizes, both sides' view of each.

Uses only what a user has: `minivmm boot`, `resize`, `info`, `exec`, `stop`. Exits 0 if device and
guest agree at every step.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

MIB = 1 << 20
GIB = 1 << 30
NAME = "demo"
DEVICE = "virtio-mem-pci,id=vmem0,size=4G,block-size=2M,requested-size=0"
STEPS = ((1 * GIB, "grow to 1 GiB"), (256 * MIB, "shrink to 256 MiB"), (0, "shrink to 0"))
READY_SECONDS = 150
STEP_SECONDS = 60

GUEST_VIEW = (
    "read -r _ total _ < /proc/meminfo; size=$(cat /sys/devices/system/memory/block_size_bytes);"
    " cat /sys/devices/system/memory/memory*/online | tr -d '\\n'; echo \" $total $size\""
)
"""Prints one digit for each memory block (1: online), MemTotal in KiB, the block size in hex."""


@dataclass(frozen=True)
class View:
    """Both sides at one moment; all sizes in bytes."""

    requested: int
    plugged: int
    total: int
    online_blocks: int
    block_size: int


def minivmm(*words: str) -> str:
    """Run a minivmm verb; its output. Raises CalledProcessError after showing its complaint."""
    command = [sys.executable, "-m", "minivmm", *words]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def wait_ready(guest: subprocess.Popen[bytes]) -> None:
    """Return once the guest runs commands. Raises TimeoutExpired after READY_SECONDS."""
    command = [sys.executable, "-m", "minivmm", "exec", NAME, "--timeout=20s", "--", "true"]
    deadline = time.monotonic() + READY_SECONDS
    while subprocess.run(command, stderr=subprocess.DEVNULL).returncode != 0:
        if time.monotonic() > deadline or guest.poll() is not None:
            raise subprocess.TimeoutExpired(command, READY_SECONDS)
        time.sleep(0.5)


def look() -> View:
    """Ask the device, then the guest."""
    device = json.loads(minivmm("info", NAME, "--json"))["memory-devices"][0]
    flags, total, size = minivmm("exec", NAME, "--", "sh", "-c", GUEST_VIEW).split()
    return View(
        requested=device["requested-size"],
        plugged=device["size"],
        total=int(total) * 1024,
        online_blocks=flags.count("1"),
        block_size=int(size, 16),
    )


def show(what: str, view: View, seconds: float) -> None:
    """One line of the table."""
    print(
        f"{what:<18} {view.requested // MIB:>9} M {view.plugged // MIB:>7} M"
        f" {view.total / MIB:>10.1f} M {view.online_blocks:>5} x {view.block_size // MIB} M"
        f" {seconds:>8.1f} s",
        flush=True,
    )


def agree(view: View, wanted: int, base: View) -> bool:
    """The device has what was asked for, and the guest's total moved by exactly that much."""
    return (
        view.requested == view.plugged == wanted
        and view.total - base.total == wanted
        and view.online_blocks * view.block_size >= base.online_blocks * base.block_size + wanted
    )


def steps() -> bool:
    """Go through all sizes; True if both sides agreed each time."""
    began = time.monotonic()
    base = look()
    print(f"{'':<18} {'requested':>11} {'plugged':>9} {'MemTotal':>12} {'online':>9} {'time':>12}")
    show("booted", base, time.monotonic() - began)
    ok = agree(base, 0, base)
    for size, what in STEPS:
        began = time.monotonic()
        minivmm("resize", NAME, str(size), f"--wait={STEP_SECONDS}s")
        took = time.monotonic() - began
        view = look()
        show(what, view, took)
        if not agree(view, size, base):
            print(f"demo: the two sides disagree after {what!r}", file=sys.stderr)
            ok = False
    return ok


def main() -> int:
    """Boot, go through the steps, stop; the exit status."""
    began = time.monotonic()
    print("booting Debian's 6.12 cloud kernel, 512 MiB of boot RAM, device: " + DEVICE, flush=True)
    boot = [sys.executable, "-m", "minivmm", "boot", "-n", NAME, "-m", "512M", "--device", DEVICE]
    console = tempfile.TemporaryFile()  # noqa: SIM115 - shown if something fails
    guest = subprocess.Popen([*boot, "-k", "6.12"], stdin=subprocess.DEVNULL, stdout=console)
    try:
        wait_ready(guest)
        print(f"guest ready after {time.monotonic() - began:.1f} s", flush=True)
        ok = steps()
        minivmm("stop", NAME)
        ok = guest.wait(timeout=60) == 0 and ok
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"demo: {error}", file=sys.stderr)
        ok = False
    finally:
        if guest.poll() is None:
            guest.terminate()
            guest.wait()
    if not ok:
        console.seek(0)
        print("demo: the guest's console:", console.read().decode(errors="replace"), sep="\n")
    verdict = "both sides agree at every step" if ok else "FAILED"
    print(f"demo: {verdict} ({time.monotonic() - began:.1f} s in all)")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
