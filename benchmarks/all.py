"""All benchmarks of issue 9 in one run and one table; `scripts/bench all` runs this.

Those without stock guests run here. The others run one after the other in one lab, or here if this
machine's KVM can do it. One that fails leaves a line in place of its figures.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import page
from benchmarks.figures import from_json, table
from benchmarks.stored import HOST, LAB, Part, Run, by_place, part_from_json, part_to_json, write
from minivmm.accel import probe
from minivmm.matrix import qemu
from minivmm.matrix.host import about_host
from minivmm.version import __version__

ON_HOST = ("start", "scale", "request", "burst", "endurance", "vcpus", "cli")
WITH_GUESTS = ("boot", "resize", "idle", "memory", "scale", "start")
"""In this order; start and scale measure other things where there are guests."""

FEWER_RUNS = {(LAB, "memory"): 1, (LAB, "scale"): 1, (LAB, "start"): 2}
"""How often they are measured where time is short; else the benchmark says."""

LAB_MEMORY = "7G"
"""The resize needs 4 GiB and more."""
PATIENCE = 600.0
"""Seconds that one of them may take."""


def run_part(place: str, module: str, runs: int | None = None) -> Part:
    """Run one, in a process of its own: nothing that another left behind is in its way."""
    runs = runs or FEWER_RUNS.get((place, module))
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "figures.json")
        command = [sys.executable, "-m", f"benchmarks.{module}", "--json", str(out)]
        command += [] if runs is None else ["--runs", str(runs)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
            said = done.stderr.strip().rpartition("\n")[2] or f"status {done.returncode}"
        except subprocess.TimeoutExpired:
            said = f"no end after {PATIENCE:g} s"
        seconds = time.monotonic() - began
        print(f"bench: {module} ({place}) took {seconds:.0f} s", file=sys.stderr, flush=True)
        if not out.exists():
            return Part(place, module, seconds, failed=said)
        figures = tuple(from_json(data) for data in json.loads(out.read_text()))
        return Part(place, module, seconds, figures)


def run_with_guests(folder: Path, runs: int | None) -> None:
    """Run WITH_GUESTS in this machine, and leave each and what the machine is in `folder`."""
    (folder / "host").write_text(json.dumps(about_host()))
    for number, module in enumerate(WITH_GUESTS):
        part = run_part(LAB, module, runs)
        (folder / f"part{number}").write_text(json.dumps(part_to_json(part)))


def run_all(runs: int | None) -> Run:
    """Run everything, `runs` times or as often as the benchmarks say."""
    began = time.monotonic()
    parts = [run_part(HOST, module, runs) for module in ON_HOST]
    hosts = {HOST: about_host()}
    with tempfile.TemporaryDirectory() as folder:
        if probe().usable:
            run_with_guests(Path(folder), runs)
        else:
            inside = [sys.executable, "-m", "benchmarks.all", "--inside", folder]
            inside += [] if runs is None else ["--runs", str(runs)]
            lab = [sys.executable, "-m", "minivmm", "lab", "-m", LAB_MEMORY, "--", *inside]
            subprocess.run(lab, check=False)
        for number, module in enumerate(WITH_GUESTS):
            path = Path(folder, f"part{number}")
            if path.exists():
                parts.append(part_from_json(json.loads(path.read_text())))
            else:
                parts.append(Part(LAB, module, failed="the lab ended before"))
        told = Path(folder, "host")
        if told.exists():
            hosts[LAB] = json.loads(told.read_text())
    versions = {
        "minivmm": __version__,
        "QEMU": qemu.version(),
        "Python": platform.python_version(),
    }
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Run(when, time.monotonic() - began, versions, hosts, tuple(parts))


def main() -> int:
    """Run everything and print the table; 1 if a benchmark failed. A missed goal is no failure."""
    parser = argparse.ArgumentParser(prog="scripts/bench all")
    parser.add_argument(
        "--write", action="store_true", help="store the run in docs/performance.{json,md}"
    )
    parser.add_argument("--runs", type=int, help="how often each is measured, for a quick look: 1")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.inside is not None:
        run_with_guests(words.inside, words.runs)
        return 0
    run = run_all(words.runs)
    print(by_place(run, table), end="")
    if words.write:
        write(run, page.FOUND)
        page.main()
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
