"""What `minivmm` verbs cost a person who waits for them: milliseconds from start to end.

The VM is a fake one in this process, so what is measured is the command. The budgets are for a
machine with nothing else to do; elsewhere the CPU time, which is stored as a detail, says what it
would take there.
"""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.figures import Figure, present
from minivmm import runtime
from minivmm.control.face import Context
from minivmm.control.qmp import QmpServer
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.testing.fake_machine import FakeMachine
from minivmm.units import GIB

RUNS = 10

BUDGETS = {
    ("--help",): 150,
    ("resize", "vm1", "1G"): 200,
    ("list",): 200,
    ("info", "vm1"): 200,
    ("qmp", "vm1", "query-status"): 200,
    ("completion", "bash", "--", "minivmm resize v"): 200,
}
"""Command -> milliseconds."""


def serve(started: threading.Event) -> None:
    """A VM called vm1, for as long as this process lives."""

    async def run() -> None:
        machine = FakeMachine("vm1", [VirtioMemSpec(id="vmem0", size=4 * GIB)])
        directory = runtime.claim("vm1")
        await QmpServer(Context(machine, machine.agent), machine.lock).start(directory.qmp_socket)
        started.set()
        await asyncio.Event().wait()

    asyncio.run(run())


def timed(words: tuple[str, ...], runs: int) -> tuple[list[float], float]:
    """Milliseconds of every run, and of CPU time in each on average."""
    command = [str(Path(sys.executable).with_name("minivmm")), *words]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(1000 * (time.perf_counter() - start))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return times, 1000 * cpu / runs


def measure(runs: int = RUNS) -> list[Figure]:
    """Run each command `runs` times."""
    figures = []
    with tempfile.TemporaryDirectory() as directory:
        os.environ["MINIVMM_RUNTIME_DIR"] = directory
        started = threading.Event()
        threading.Thread(target=serve, args=(started,), daemon=True).start()
        started.wait(10)
        for words, budget in BUDGETS.items():
            times, cpu = timed(words, runs)
            name = f"minivmm {' '.join(words)}"
            figures.append(Figure(name, "ms", times, at_most=budget, detail={"CPU ms": cpu}))
    return figures


if __name__ == "__main__":
    present(measure)
