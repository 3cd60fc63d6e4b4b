"""Backing: what kind of host memory stands behind a region, and whether this host has it."""

from __future__ import annotations

from dataclasses import dataclass

from minivmm.errors import HostError, UsageError
from minivmm.memory import files, hugepages
from minivmm.memory.libc import PAGE_SIZE
from minivmm.units import format_size, is_power_of_two

KINDS = ("anon", "memfd", "file", "hugetlb")
THP = ("on", "off", "madvise-default")


@dataclass(frozen=True, kw_only=True)
class Backing:
    """Plain data, with the names and values of a device's options.

    | kind    | memory                                                        |
    |---------|---------------------------------------------------------------|
    | anon    | private anonymous: reading what is empty takes no memory      |
    | memfd   | shared, of a nameless file in memory                          |
    | file    | shared, of a file at `path` (MemoryFile says what may be there)|
    | hugetlb | shared, of a nameless file of huge pages of `page_size` bytes |

    `thp`, for the others than hugetlb: "on" and "off" advise the kernel for and against transparent
    huge pages, with "madvise-default" the host's setting decides alone. UsageError for what does
    not go together.
    """

    kind: str = "anon"
    page_size: int = PAGE_SIZE
    path: str | None = None
    thp: str = "on"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"backing={self.kind} is unknown: one of {', '.join(KINDS)}")
        if self.thp not in THP:
            raise UsageError(f"thp={self.thp} is unknown: one of {', '.join(THP)}")
        if (self.path is None) == (self.kind == "file"):
            raise UsageError(
                "backing=file needs path=, the file or directory to keep guest memory in"
                if self.path is None
                else f"path={self.path} is for backing=file, not {self.kind}: leave it out"
            )
        if self.kind == "hugetlb":
            if self.page_size <= PAGE_SIZE or not is_power_of_two(self.page_size):
                raise UsageError(
                    f"page-size={self.page_size} is no size of huge pages:"
                    " use one that the host has, such as 2M or 1G"
                )
        elif self.page_size != PAGE_SIZE:
            raise UsageError(
                f"page-size={format_size(self.page_size)} is for backing=hugetlb, not"
                f" {self.kind}, which has pages of {PAGE_SIZE}: leave it out"
            )

    def check_host(self, size: int) -> None:
        """Raises HostError naming the one option that this host cannot do, and the remedy.

        `size` in bytes is what shall be backed. A pool with too few huge pages is no error: they
        may come, and plugging waits for them.
        """
        if self.kind == "hugetlb":
            self._check_pool(size)
        elif self.thp == "on":
            self._check_thp()
        if self.path is not None:
            files.check_path(self.path)

    def _check_pool(self, size: int) -> None:
        sizes = hugepages.pools()
        if self.page_size in sizes:
            return
        wanted = format_size(self.page_size)
        if not sizes:
            raise HostError(
                "backing=hugetlb: this host's kernel has no huge pages (CONFIG_HUGETLBFS):"
                " use another backing"
            )
        has = ", ".join(format_size(found) for found in sizes)
        pages = -(-size // self.page_size)
        raise HostError(
            f"page-size={wanted}: this host has no huge pages of that size: use one of {has}, or,"
            f" if its CPU has them, boot it with hugepagesz={wanted} hugepages={pages}"
        )

    def _check_thp(self) -> None:
        where, allowing = (
            ("enabled", hugepages.THP_ANON)
            if self.kind == "anon"
            else ("shmem_enabled", hugepages.THP_SHMEM)
        )
        setting = hugepages.thp_setting(where)
        if setting is None:
            raise HostError(
                "thp=on: this host's kernel has no transparent huge pages for"
                f" backing={self.kind}: use thp=off"
            )
        if self.path is not None and setting not in ("deny", "force"):
            self._check_mount(self.path, allowing)
        elif setting not in allowing:
            raise HostError(
                f"thp=on: this host's transparent huge pages for backing={self.kind} are off: use"
                f" thp=off, or `echo {allowing[-1]} > {hugepages.thp_switch(where)}`"
            )

    def _check_mount(self, path: str, allowing: tuple[str, ...]) -> None:
        """tmpfs takes the mount's word instead of the host's setting; others never have any."""
        system = files.file_system(path)
        if system.kind != "tmpfs":
            raise HostError(
                f"thp=on: there are no transparent huge pages on {system.kind}, where path={path}"
                " is: use thp=off, or a tmpfs mounted with huge=advise"
            )
        if not any(f"huge={word}" in system.options for word in allowing):
            raise HostError(
                f"thp=on: the tmpfs where path={path} is was mounted without huge pages: use"
                " thp=off, or mount it with huge=advise"
            )
