"""What `minivmm` verbs cost a person who waits for them: milliseconds from start to end.

The VM is a fake one in this process, so what is measured is the command. The budgets are for a
machine with nothing else to do; elsewhere the CPU time says what it would take there.
"""

from __future__ import annotations

import asyncio
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from minivmm import runtime
from minivmm.control.face import Context
from minivmm.control.qmp import QmpServer
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.testing.fake_machine import FakeMachine
from minivmm.units import GIB

RUNS = 20

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


def measure(words: tuple[str, ...]) -> tuple[list[float], float]:
    """Milliseconds of every run, and of CPU time in each on average."""
    command = [str(Path(sys.executable).with_name("minivmm")), *words]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(1000 * (time.perf_counter() - start))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return times, 1000 * cpu / RUNS


def main() -> int:
    """Print a table; 1 if a budget is exceeded, and not because the machine is busy."""
    failed = False
    with tempfile.TemporaryDirectory() as directory:
        os.environ["MINIVMM_RUNTIME_DIR"] = directory
        started = threading.Event()
        threading.Thread(target=serve, args=(started,), daemon=True).start()
        started.wait(10)
        print(f"{'minivmm ...':40} {'least':>8} {'median':>8} {'CPU':>8} {'budget':>8}   (ms)")
        for words, budget in BUDGETS.items():
            times, cpu = measure(words)
            least = min(times)
            failed |= min(least, cpu) > budget
            shown = (least, statistics.median(times), cpu, budget)
            print(f"{' '.join(words):40} " + " ".join(f"{value:8.0f}" for value in shown))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
