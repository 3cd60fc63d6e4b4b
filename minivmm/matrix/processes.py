"""What a process costs its host, as /proc tells; the same for minivmm and for its peers."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from minivmm.stats import kvm_counters
from minivmm.units import KIB, MIB

GUEST_MEMORY = 256 * MIB
"""Bytes of a mapping from which on it is taken for memory of the guest: a VMM has none so large."""

_HEADING = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ *(.*)$")


@dataclass(frozen=True)
class ProcessUse:
    """Open files, threads, resident bytes without the guest's memory, and that of each mapping of
    the guest's memory by its size.
    """

    fds: int
    threads: int
    resident: int
    guest: tuple[tuple[int, int], ...]

    def resident_of(self, size: int) -> int:
        """Resident bytes of the mappings of `size` bytes."""
        return sum(resident for mapped, resident in self.guest if mapped == size)


def process_use(pid: int) -> ProcessUse:
    """What process `pid` uses now. Raises OSError if it has ended."""
    folder = Path(f"/proc/{pid}")
    # Listing our own files opens one more.
    fds = len(list((folder / "fd").iterdir())) - (1 if pid == os.getpid() else 0)
    threads = len(list((folder / "task").iterdir()))
    resident, guest = _mappings((folder / "smaps").read_bytes())
    return ProcessUse(fds, threads, resident, guest)


def exits_of(pid: int) -> int | None:
    """Exits of all guests of process `pid` so far, those that KVM handles itself as well.

    None where KVM's statistics cannot be read (debugfs).
    """
    return counters_of(pid).get("kvm exits")


def counters_of(pid: int) -> dict[str, int]:
    """KVM's counters of all guests of process `pid`, summed (minivmm.stats.KVM_COUNTERS).

    Empty where KVM's statistics cannot be read (debugfs).
    """
    totals: Counter[str] = Counter()
    # KVM names the folder of a VM after the thread that made it.
    for path in Path(f"/proc/{pid}/task").iterdir():
        totals.update(kvm_counters(int(path.name)))
    return dict(totals)


def _mappings(smaps: bytes) -> tuple[int, tuple[tuple[int, int], ...]]:
    """Resident bytes of all small mappings, and (size, resident bytes) of each large one.

    Neighbours of equal rights that the kernel keeps apart (huge pages advised for one part) count
    as several: a VMM maps guest memory in one piece.
    """
    resident, size = 0, 0
    guest: list[tuple[int, int]] = []
    for line in smaps.splitlines():
        if line.startswith(b"Rss:"):
            held = int(line.split()[1]) * KIB
            if size >= GUEST_MEMORY:
                guest.append((size, held))
            else:
                resident += held
        elif heading := _HEADING.match(line):
            size = int(heading[2], 16) - int(heading[1], 16)
    return resident, tuple(guest)
