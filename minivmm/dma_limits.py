"""What a host must allow for DMA to a machine's memory: checked at start, with what would work.

    addresses       the IOMMU reaches all of it
    pages           no IOMMU page is larger than a block
    mappings        enough of them for every block of every region
    locked memory   RLIMIT_MEMLOCK: what is mapped is pinned

The mappings themselves are kept in dma.py.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minivmm.errors import HostError
from minivmm.memory.layout import Window
from minivmm.units import format_size
from minivmm.vfio.container import Container

CAP_IPC_LOCK = 14
"""Who has this capability may pin any amount (<linux/capability.h>)."""

_WHOLE_MACHINE = "0 0 4294967295"
"""/proc/self/uid_map outside of user namespaces, where capabilities count for nothing here."""


@dataclass(frozen=True)
class SparseRegion:
    """Memory of a virtio-mem device: `window` in blocks of `block` bytes."""

    name: str
    window: Window
    block: int

    @property
    def blocks(self) -> int:
        """How many mappings it needs when all of it is plugged."""
        return self.window.size // self.block


def check_container(
    container: Container, ram: Sequence[Window], regions: Sequence[SparseRegion]
) -> None:
    """Raises HostError if the IOMMU cannot map all of `ram` and each block of `regions`."""
    _check_pages(container.page_sizes, regions)
    for name, window in [("RAM", one) for one in ram] + [(one.name, one.window) for one in regions]:
        _check_reach(container.windows, name, window)
    if container.limit is not None:
        _check_count(container.limit, len(ram), regions)


def check_locked(needed: int, most: int, limit: int | None) -> str | None:
    """`needed` bytes are pinned at start, and `most` once all is plugged; `limit` from lockable().

    Returns a warning if not all can be plugged. Raises HostError if not even the start is possible.
    """
    if limit is None or limit >= most:
        return None
    cure = (
        f"allow {format_size(most)} (`ulimit -l {-(-most // 1024)}`, LimitMEMLOCK= of a systemd"
        " unit, /etc/security/limits.conf), or run as root"
    )
    if limit < needed:
        raise HostError(
            f"passthrough pins guest memory, {format_size(needed)} of it at start, but this user"
            f" may lock {format_size(limit)} only (RLIMIT_MEMLOCK): {cure}"
        )
    return (
        f"passthrough pins guest memory, and this user may lock {format_size(limit)} only"
        f" (RLIMIT_MEMLOCK): the guest cannot grow beyond that; {cure}"
    )


def lockable() -> int | None:
    """Bytes that this process may lock; None if there is no limit.

    The soft limit is raised to the hard one first.
    """
    if _may_lock_all():
        return None
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
    return None if hard == resource.RLIM_INFINITY else hard


def why_no_memory(limit: int | None) -> str:
    """What it means that the kernel had no memory for a mapping (ENOMEM)."""
    if limit is None:
        return "the host is out of memory"
    return (
        f"the host is out of memory, or more than {format_size(limit)} would be locked"
        " (RLIMIT_MEMLOCK): raise it, `ulimit -l`"
    )


def _check_pages(page_sizes: int, regions: Sequence[SparseRegion]) -> None:
    least = page_sizes & -page_sizes
    for region in regions:
        if region.block % least:
            raise HostError(
                f"{region.name}: block-size {format_size(region.block)} is smaller than a page of"
                f" this host's IOMMU: use block-size={format_size(least)} or more"
            )


def _check_reach(windows: Sequence[tuple[int, int]], name: str, window: Window) -> None:
    if any(first <= window.base and window.end - 1 <= last for first, last in windows):
        return
    known = ", ".join(f"{first:#x}-{last:#x}" for first, last in windows)
    raise HostError(
        f"{name} at {window} is not all in reach of devices behind this host's IOMMU, which maps"
        f" {known}: use a smaller -m or size=, or memaddr="
    )


def _check_count(limit: int, others: int, regions: Sequence[SparseRegion]) -> None:
    """`others` are mappings besides those of blocks."""
    needed = others + sum(region.blocks for region in regions)
    if needed <= limit:
        return
    largest = max(regions, key=lambda region: region.blocks)
    left = limit - (needed - largest.blocks)
    offers = [f"block-size={format_size(block)}" for block in _larger_blocks(largest, left)[:1]]
    if left > 0:
        offers.append(f"size={format_size(left * largest.block)}")
    offers.append(f"vfio_iommu_type1's parameter dma_entry_limit={needed}")
    raise HostError(
        f"{largest.name}: {format_size(largest.window.size)} in blocks of"
        f" {format_size(largest.block)} may need {needed} DMA mappings, and this host allows"
        f" {limit}: use {', or '.join(offers)}"
    )


def _larger_blocks(region: SparseRegion, most: int) -> list[int]:
    """Sizes of blocks, ascending, of which at most `most` make up the region."""
    size = region.window.size
    blocks = (region.block << shift for shift in range(size.bit_length()))
    return [block for block in blocks if not size % block and 0 < size // block <= most]


def _may_lock_all() -> bool:
    """Is CAP_IPC_LOCK effective, and not just in a user namespace?"""
    if Path("/proc/self/uid_map").read_text().split() != _WHOLE_MACHINE.split():
        return False
    lines = Path("/proc/self/status").read_text().splitlines()
    effective = next(line.split()[1] for line in lines if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> CAP_IPC_LOCK & 1)
