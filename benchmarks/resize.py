"""A stock guest grows and shrinks: seconds and exits, minivmm beside QEMU's virtio-mem-pci.

Both guests are there all the time, each in a process of its own, and take turns; the one whose turn
it is not stands still. Same kernel, initrd, command line, boot memory and block size. A turn of
each warms up and does not count.

Debian's kernels fill memory with zeroes before they give it away (init_on_alloc=1). That is work of
the guest, touches every page, and is nearly all of a shrink in the lab, whatever the VMM does. So
there are guests with the stock command line, and guests without that work, where the VMM shows.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from benchmarks import guests
from benchmarks.figures import Figure, present
from benchmarks.guests import Running
from minivmm.matrix.processes import counters_of
from minivmm.units import GIB, format_size

RUNS, STOCK_RUNS = 5, 2
REGION = 4 * GIB
SETTLE = 1.0
"""Seconds between two resizes: what Linux does afterwards is over."""

QUIET = ("init_on_alloc=0",)
"""Words for the command line of guests that give memory away as it is."""


@dataclass(frozen=True)
class Turn:
    """A growth, and the shrink to nothing that followed."""

    grow: float
    """Seconds."""
    shrink: float
    counters: Counter[str]
    """What KVM counted during both."""

    @property
    def seconds(self) -> float:
        """Both together."""
        return self.grow + self.shrink

    @property
    def exits(self) -> float:
        """Those that KVM handles itself as well."""
        return self.counters["kvm exits"]


class Side:
    """A guest, which stands still but for its turns."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._running.qmp("stop")

    def turn(self, size: int) -> Turn:
        """Grow to `size` bytes and shrink to nothing. Raises SystemExit if it does not."""
        self._running.qmp("cont")
        time.sleep(SETTLE)
        before = counters_of(self._running.pid)
        grow = self._running.resize(size)
        between = counters_of(self._running.pid)
        time.sleep(SETTLE)
        again = counters_of(self._running.pid)
        shrink = self._running.resize(0)
        after = counters_of(self._running.pid)
        self._running.qmp("stop")
        counted = {name: between[name] - before[name] + after[name] - again[name] for name in after}
        return Turn(grow, shrink, Counter(counted))


def measure(runs: int = RUNS) -> list[Figure]:
    """Both of them, `runs` times, and some with the stock command line."""
    return [*_measure(min(runs, STOCK_RUNS), ()), *_measure(runs, QUIET)]


def _measure(runs: int, append: tuple[str, ...]) -> list[Figure]:
    setup = replace(guests.SETUP, region=REGION, append=append)
    with (
        guests.files() as images,
        guests.ours(images, setup=setup) as ours,
        guests.qemu(images, setup=setup) as peer,
    ):
        sides = Side(ours), Side(peer)
        for side in sides:
            side.turn(GIB)
        turns = [tuple(side.turn(REGION) for side in sides) for _ in range(runs)]
    mine, other = zip(*turns, strict=True)
    what = f"{format_size(REGION)}, {append[0] if append else 'stock'}"
    return [
        _figure(f"grow by {what}", "s", mine, other, lambda turn: turn.grow),
        _figure(f"shrink by {what}", "s", mine, other, lambda turn: turn.shrink),
        _figure(f"grow and shrink, {what}", "s", mine, other, lambda turn: turn.seconds, 1.0),
        _figure(f"grow and shrink, {what}: exits", "", mine, other, lambda turn: turn.exits, 1.0),
    ]


def _figure(
    name: str,
    unit: str,
    ours: Sequence[Turn],
    peer: Sequence[Turn],
    value: Callable[[Turn], float],
    ratio: float | None = None,
) -> Figure:
    detail = {
        f"{who}: {kind.removeprefix('kvm ')}": statistics.median(
            turn.counters[kind] for turn in turns
        )
        for who, turns in (("ours", ours), ("QEMU", peer))
        for kind in ours[0].counters
    }
    return Figure(
        name,
        unit,
        [value(turn) for turn in ours],
        [value(turn) for turn in peer],
        peer_name="q35",
        ratio_at_most=ratio,
        detail={} if unit else detail,
    )


if __name__ == "__main__":
    present(measure)
