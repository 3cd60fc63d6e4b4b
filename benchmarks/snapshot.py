"""What snapshots cost: bytes, the guest's pause, and the time to go on, for 1 and 8 GiB plugged.

Linux plugs memory and fills some of it; where /dev/kvm cannot run it, that is in the lab. There is
one VM for each size. `scripts/bench snapshot` runs it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import minivmm
from minivmm.units import GIB, MIB, format_size

NAME = "bench-snapshot"
TOUCHED = 64 * MIB
"""Bytes that the guest writes after the resize, so that plugged memory holds something."""


def main() -> None:
    """Print a row for each size."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 8], help="GiB plugged")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    print(f"restores: medians of {arguments.runs}; to first instruction: building and loading only")
    heading = ("plugged", "written MiB", "on disk MiB", "pause ms", "taken s")
    print(" ".join(f"{word:>12}" for word in (*heading, "to first s", "exec-end s")), flush=True)
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as place:
            measure(size * GIB, Path(place, "s"), arguments.runs)


def measure(size: int, place: Path, runs: int) -> None:
    """Print the row of a guest with `size` bytes plugged."""
    device = minivmm.VirtioMem(size=size)
    with minivmm.boot(memory="512M", devices=[device], name=NAME) as vm:
        assert vm.mem["vmem0"].resize(size).wait(300).done
        vm.run(f"dd if=/dev/urandom of=/x bs=1M count={TOUCHED // MIB} 2>/dev/null")
        taken = json.loads(run("snapshot", NAME, str(place), "--json").stdout)
    first: list[float] = []
    whole: list[float] = []
    for _ in range(runs):
        began = time.monotonic()
        words = ["boot", "--accel", "kvm", "--restore", str(place), "--stats", "--json"]
        done = run(*words, "-n", NAME, "-q", "--", "true")
        whole.append(time.monotonic() - began)
        first.append(json.loads(done.stderr.splitlines()[-1])["milestones"]["first-instruction"])
    disk = sum(file.stat().st_blocks * 512 for file in place.iterdir())
    row = [
        format_size(size),
        str(taken["written"] // MIB),
        str(disk // MIB),
        f"{taken['pause'] * 1000:.0f}",
        f"{taken['seconds']:.1f}",
        f"{median(first):.3f}",
        f"{median(whole):.2f}",
    ]
    print(" ".join(f"{word:>12}" for word in row), flush=True)


def run(*words: str) -> subprocess.CompletedProcess[Any]:
    """The command line `words` of this minivmm, which must succeed."""
    command = [sys.executable, "-P", "-m", "minivmm.cli", *words]
    return subprocess.run(command, capture_output=True, check=True)


if __name__ == "__main__":
    main()
