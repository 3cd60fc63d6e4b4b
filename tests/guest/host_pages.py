"""The host's huge pages, provided and taken away by a test. Only in the lab, whose host is ours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from minivmm.lab.lab import MARK
from minivmm.memory import hugepages
from minivmm.units import format_size

LAB = 'minivmm lab -m 4G --append "hugepagesz=1G hugepages=1" -- '
"""What scripts/test starts: a pool of gigantic pages can be relied on only from the start."""


class HostPages:
    """Pools of hugetlb pages; sizes in bytes."""

    def free(self, page_size: int) -> int:
        """Bytes of pages of that size that nobody uses."""
        return hugepages.pool(page_size).free * page_size

    def provide(self, page_size: int, size: int) -> None:
        """Have `size` bytes of such pages, no fewer than are used. Fails if the host cannot."""
        control = hugepages.pool_directory(page_size) / "nr_hugepages"
        control.write_text(str(size // page_size))
        found = hugepages.pool(page_size).total * page_size
        assert found == size, f"the host made {format_size(found)} of {format_size(page_size)}"


@contextmanager
def host_pages(page_size: int) -> Iterator[HostPages]:
    """The pool of this size may be changed; shared memory gets transparent pages on advice."""
    if MARK not in os.environ:
        pytest.skip(f"needs huge pages of this host, which stay its owner's: {LAB}pytest ...")
    switch = hugepages.thp_switch("shmem_enabled")
    before = switch.read_text().partition("[")[2].partition("]")[0]
    total = hugepages.pool(page_size).total * page_size
    switch.write_text("advise")
    pages = HostPages()
    try:
        yield pages
    finally:
        switch.write_text(before)
        pages.provide(page_size, total)
