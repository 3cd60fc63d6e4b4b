"""What the host says about huge pages: pools of hugetlb pages, settings of transparent ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from minivmm.units import KIB

MM = Path("/sys/kernel/mm")
"""Where the kernel shows both (Documentation/admin-guide/mm/{hugetlbpage,transhuge}.rst)."""

THP_ANON: tuple[str, ...] = ("always", "madvise")
"""Settings of `enabled` with which MADV_HUGEPAGE gives anonymous memory huge pages."""
THP_SHMEM: tuple[str, ...] = ("force", "always", "within_size", "advise")
"""Settings of `shmem_enabled`, or of a tmpfs's huge=, with which shared memory gets them."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The host's hugetlb pages of one size; counts of pages, `page_size` in bytes."""

    page_size: int
    total: int
    free: int
    reserved: int
    surplus: int
    overcommit: int

    @property
    def available(self) -> int:
        """Bytes that a mapping without a reservation could populate now.

        Free pages that others have reserved are not ours; surplus pages are taken from the host's
        ordinary memory on demand, up to nr_overcommit_hugepages.
        """
        pages = max(self.free - self.reserved, 0) + max(self.overcommit - self.surplus, 0)
        return pages * self.page_size


def pools() -> dict[int, Pool]:
    """The pools by page size in bytes, empty ones too; {} for a kernel without hugetlb."""
    found = (pool(int(path.name[10:-2]) * KIB) for path in MM.glob("hugepages/hugepages-*kB"))
    return {entry.page_size: entry for entry in sorted(found, key=lambda entry: entry.page_size)}


def pool(page_size: int) -> Pool:
    """The pool of that size as of now. Raises OSError if the host has no pages of that size."""
    directory = pool_directory(page_size)

    def count(name: str) -> int:
        return int((directory / name).read_text())

    return Pool(
        page_size=page_size,
        total=count("nr_hugepages"),
        free=count("free_hugepages"),
        reserved=count("resv_hugepages"),
        surplus=count("surplus_hugepages"),
        overcommit=count("nr_overcommit_hugepages"),
    )


def pool_directory(page_size: int) -> Path:
    """Where the pool of that size is shown and set."""
    return MM / f"hugepages/hugepages-{page_size // KIB}kB"


def thp_size() -> int | None:
    """Bytes in a transparent huge page; None for a kernel without them."""
    try:
        return int((MM / "transparent_hugepage/hpage_pmd_size").read_text())
    except OSError:
        return None


def thp_setting(name: str) -> str | None:
    """What decides about huge pages of thp_size(): "always", "madvise", "advise", "never", ...

    `name` is "enabled" (anonymous memory) or "shmem_enabled" (memfd; tmpfs has its mount option).
    Since Linux 6.8 each size has a setting of its own, which may be to inherit the general one;
    "deny" and "force" in general overrule it. None for a kernel without such huge pages.
    """
    general = _chosen(_general(name))
    if general in ("deny", "force"):
        return general
    own = _chosen(_own(name))
    return general if own in (None, "inherit") else own


def thp_switch(name: str) -> Path:
    """The file to write to for another thp_setting(name)."""
    inherits = _chosen(_own(name)) in (None, "inherit") or _chosen(_general(name)) == "deny"
    return _general(name) if inherits else _own(name)


def _general(name: str) -> Path:
    return MM / "transparent_hugepage" / name


def _own(name: str) -> Path:
    return MM / f"transparent_hugepage/hugepages-{(thp_size() or 0) // KIB}kB" / name


def _chosen(path: Path) -> str | None:
    """The word in brackets of a file like "always [madvise] never"; None without the file."""
    try:
        text = path.read_text()
    except OSError:
        return None
    return text.partition("[")[2].partition("]")[0]
