"""What a guest that does nothing costs: exits, and wake-ups of the VMM, beside QEMU's q35.

A wake-up is a voluntary context switch of a thread: it slept, and something made it run. vCPU
threads wake for the guest's own timer; the VMM's other threads have no reason to.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from benchmarks import guests
from benchmarks.figures import Figure, present
from benchmarks.guests import Running
from minivmm.matrix.processes import counters_of

RUNS = 1
SETTLE = 15.0
"""Seconds until what Linux does after its start is over."""
WINDOW = 10.0
"""Seconds that are watched."""

VMM_EXITS = ("kvm io_exits", "kvm mmio_exits", "kvm signal_exits")
"""Exits that the VMM serves, or makes."""


def measure(runs: int = RUNS) -> list[Figure]:
    """Boot each of them `runs` times, in turns, and look on."""
    ours, peer = guests.in_turns(runs, watch)
    goals = {"exits that the VMM serves": 0.0, "wake-ups of its other threads": 0.0}
    names = ("exits", *goals, "wake-ups of its vCPU")
    return [
        Figure(
            f"idle for {WINDOW:g} s: {name}",
            "",
            [one[name] for one in ours],
            [one[name] for one in peer],
            peer_name="q35",
            at_most=goals.get(name),
        )
        for name in names
    ]


def watch(running: Running) -> Counter[str]:
    """What happens in WINDOW seconds once its start is over, by the names of `measure`."""
    time.sleep(SETTLE)
    cpus = running.cpu_threads
    before = _now(running.pid, cpus)
    time.sleep(WINDOW)
    after = _now(running.pid, cpus)
    return Counter({name: after[name] - before[name] for name in after})


def _now(pid: int, cpus: set[int]) -> Counter[str]:
    kvm = counters_of(pid)
    now = Counter(exits=kvm["kvm exits"])
    now["exits that the VMM serves"] = sum(kvm[name] for name in VMM_EXITS)
    for thread in Path(f"/proc/{pid}/task").iterdir():
        mine = int(thread.name) in cpus
        now["wake-ups of its vCPU" if mine else "wake-ups of its other threads"] += _slept(thread)
    return now


def _slept(thread: Path) -> int:
    lines = (thread / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt"))


if __name__ == "__main__":
    present(measure)
