"""How much memory the host could give this process now, without hugetlb pages."""

from __future__ import annotations

import re
from pathlib import Path

from minivmm.units import KIB, MIB

MEMINFO = Path("/proc/meminfo")
OWN_CGROUP = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")

RESERVE = 64 * MIB
"""Bytes that stay for the host and ourselves: MemAvailable is an estimate, and whoever takes the
last page may be killed for it."""


def available() -> int:
    """Bytes that could be populated now: what the host has, and what our cgroups allow (v2)."""
    limits = [_host(), *(_left(group) for group in _groups())]
    return max(min(limit for limit in limits if limit is not None) - RESERVE, 0)


def _host() -> int:
    found = re.search(r"^MemAvailable: +(\d+) kB$", MEMINFO.read_text(), re.MULTILINE)
    return int(found[1]) * KIB if found else 0


def _groups() -> list[Path]:
    """Our cgroup and those that it is in. The root that we see may be a container's."""
    found = re.search(r"^0::/(.*)$", OWN_CGROUP.read_text(), re.MULTILINE)
    if found is None:
        return []
    own = CGROUPS / found[1]
    return [group for group in (own, *own.parents) if group.is_relative_to(CGROUPS)]


def _left(group: Path) -> int | None:
    """Bytes that the cgroup may still take; None without a limit. Idle file pages make room."""
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit == "max":
            return None
        current = int((group / "memory.current").read_text())
        statistics = (group / "memory.stat").read_text()
    except OSError:  # no memory controller here
        return None
    idle = re.search(r"^inactive_file (\d+)$", statistics, re.MULTILINE)
    return int(limit) - current + (int(idle[1]) if idle else 0)
