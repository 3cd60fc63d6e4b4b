"""Resident memory of the VMM itself, without its guest's: minivmm beside QEMU's q35, in turns.

The guest is ready and idle, with a virtio-mem device, before and after a resize. Mappings of the
guest's memory are left out by their size (minivmm.matrix.processes).
"""

from __future__ import annotations

import time

from benchmarks import guests
from benchmarks.figures import Figure, present
from benchmarks.guests import Running
from minivmm.matrix.processes import process_use
from minivmm.units import GIB, MIB

RUNS = 2
MOST_OF_QEMU = 0.5
"""Goal of issue 9."""
SETTLE = 2.0
"""Seconds after which what a guest's start has left behind is over."""


def measure(runs: int = RUNS) -> list[Figure]:
    """Boot and grow each of them `runs` times, in turns."""
    ours, peer = guests.in_turns(runs, look)
    moments = ("the guest is ready", "1 GiB is plugged")
    return [
        Figure(
            f"resident memory of the VMM when {moment}",
            "MiB",
            [values[number] for values in ours],
            [values[number] for values in peer],
            peer_name="q35",
            ratio_at_most=MOST_OF_QEMU,
        )
        for number, moment in enumerate(moments)
    ]


def look(running: Running) -> tuple[float, float]:
    """MiB before and after a resize."""
    before = resident(running.pid)
    running.resize(GIB)
    return before, resident(running.pid)


def resident(pid: int) -> float:
    """MiB that process `pid` has of its own, once it has come to rest."""
    time.sleep(SETTLE)
    return process_use(pid).resident / MIB


if __name__ == "__main__":
    present(measure)
