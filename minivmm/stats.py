"""What a boot cost: exits by kind and place, milestones, and KVM's own counters.

Counting is two dictionary operations an exit; the keys are bounded by what is on the buses.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

KVM_DEBUGFS = Path("/sys/kernel/debug/kvm")
KVM_COUNTERS = (
    *("exits", "io_exits", "mmio_exits", "halt_exits", "signal_exits"),
    *("pf_fixed", "irq_injections"),
)
"""Files of KVM's statistics directory that are reported (Documentation/virt/kvm, kvm_stat)."""

MAX_PLACES = 4096
"""Distinct places counted one by one; a guest that touches more of them is counted as "other"."""

OTHER = -1
"""In place of the address of all those others."""


class Stats:
    """Counters of one machine's life; milestones in seconds since the object was made."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self.exits: Counter[str] = Counter()
        self.places: Counter[tuple[str, int]] = Counter()
        self.milestones: dict[str, float] = {}
        self.exits_at: dict[str, dict[str, int]] = {}

    def count(self, kind: str) -> None:
        """An exit of `kind` that has no address."""
        self.exits[kind] += 1

    def count_at(self, kind: str, address: int) -> None:
        """An exit of `kind` ("io in", "mmio write", ...) at a port or guest physical address."""
        self.exits[kind] += 1
        place = (kind, address)
        if place in self.places or len(self.places) < MAX_PLACES:
            self.places[place] += 1
        else:
            self.places[kind, OTHER] += 1

    def mark(self, milestone: str) -> None:
        """Remember when `milestone` was first reached, and the counters at that moment."""
        if milestone not in self.milestones:
            self.milestones[milestone] = time.monotonic() - self._started
            self.exits_at[milestone] = {**self.exits, **kvm_counters()}

    def report(self) -> dict[str, object]:
        """Everything as plain data (`minivmm boot --stats --json`)."""
        return {
            "milestones": {name: round(at, 4) for name, at in self.milestones.items()},
            "exits": dict(self.exits.most_common()),
            "exits-at-milestones": self.exits_at,
            "places": [
                {"kind": kind, "address": None if address == OTHER else address, "count": count}
                for (kind, address), count in self.places.most_common()
            ],
            "kvm": kvm_counters(),
        }

    def lines(self) -> list[str]:
        """The report for people: milestones, exits by kind, the ten busiest places."""
        report = [f"{name}: {at:.3f} s" for name, at in self.milestones.items()]
        report += [f"exits, {kind}: {count}" for kind, count in self.exits.most_common()]
        report += [
            f"exits, {kind} {'other' if at == OTHER else f'{at:#x}'}: {n}"
            for (kind, at), n in self.places.most_common(10)
        ]
        for name, counters in self.exits_at.items():
            if "kvm exits" in counters:
                report.append(f"exits in KVM up to {name}: {counters['kvm exits']}")
        return report


def kvm_counters(pid: int | None = None) -> dict[str, int]:
    """KVM's counters of the VMs of process `pid` (default: this one), summed.

    Empty where debugfs cannot be read.
    """
    totals: Counter[str] = Counter()
    try:
        for directory in KVM_DEBUGFS.glob(f"{pid or os.getpid()}-*"):
            for name in KVM_COUNTERS:
                totals[f"kvm {name}"] += int((directory / name).read_text())
    except (OSError, ValueError):
        return {}
    return dict(totals)
