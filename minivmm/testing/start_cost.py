"""What `minivmm boot` costs until its guest runs: time, and host memory. Compares command lines."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from minivmm.accel import open_system
from minivmm.boot.cpuid import host_phys_bits
from minivmm.units import GIB, KIB

_REST = 64 * GIB
"""Bytes of addresses that stay for RAM, PCI and alignment."""

Start = Callable[[Sequence[str]], int]
"""Starts `minivmm WORDS`, output to nowhere; returns the process id."""


@dataclass(frozen=True)
class Cost:
    """Of one run, or the medians of several."""

    seconds: float
    """From the start of the process to its end."""
    least: float
    """Seconds of the quickest run: whatever else the machine does only adds to it."""
    peak: int
    """Bytes: the most resident memory that the process had."""
    status: int
    """Exit status, as the shell shows it."""


def largest_region(most: int) -> int:
    """Bytes of the largest region, up to `most`, that this host's CPU can address."""
    system = open_system()
    try:
        bits = host_phys_bits(system.supported_cpuid())
    finally:
        system.close()
    return min(most, (1 << bits) - _REST)


def fresh(words: Sequence[str]) -> int:
    """A process of its own. Its peak is at least the caller's memory: call it from a small one."""
    argv = [sys.executable, "-P", "-m", "minivmm", *words]
    nowhere = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
    return os.posix_spawn(sys.executable, argv, os.environ, file_actions=nowhere)


def cost_of(words: Sequence[str], start: Start = fresh) -> Cost:
    """Of one run of `minivmm WORDS`, to its end."""
    began = time.perf_counter()
    _, status, usage = os.wait4(start(words), 0)
    seconds = time.perf_counter() - began
    code = os.waitstatus_to_exitcode(status)
    return Cost(seconds, seconds, usage.ru_maxrss * KIB, code if code >= 0 else 128 - code)


def compare(
    commands: Mapping[str, Sequence[str]], *, runs: int, start: Start = fresh
) -> dict[str, Cost]:
    """Medians of `runs` runs of each command, taken in turns, as machines change while one looks.

    Raises RuntimeError if a command does not end with the same status each time.
    """
    found: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, words in commands.items():
            found[name].append(cost_of(words, start))
    return {name: _median(name, costs) for name, costs in found.items()}


def _median(name: str, costs: Sequence[Cost]) -> Cost:
    statuses = {cost.status for cost in costs}
    if len(statuses) > 1:
        raise RuntimeError(f"{name}: runs ended with statuses {statuses}, so they did not compare")
    return Cost(
        seconds=statistics.median(cost.seconds for cost in costs),
        least=min(cost.least for cost in costs),
        peak=round(statistics.median(cost.peak for cost in costs)),
        status=statuses.pop(),
    )
