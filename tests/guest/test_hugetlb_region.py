"""Regions of hugetlb pages, 2 MiB and 1 GiB: taken, run out of, given back; no guest is booted.

In the lab the pools are ours to fill; on a host only pages that its owner has provided are used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from minivmm.lab.lab import MARK
from minivmm.memory import hugepages
from minivmm.memory.backing import Backing
from minivmm.memory.region import PAGE_SIZE, Access, Region
from minivmm.memory.usage import Usage
from minivmm.units import GIB, MIB, format_size

IN_LAB = MARK in os.environ
POOLS = {2 * MIB: 8, GIB: 1}
"""Pages that the tests want free, by page size."""
MORE = "hugepagesz=1G hugepages=1"


@pytest.fixture(scope="module", params=POOLS, ids=format_size)
def page(request: pytest.FixtureRequest) -> Iterator[int]:
    """Each size of huge pages, with POOLS of them or more to be had."""
    size = int(request.param)
    control = hugepages.pool_directory(size) / "nr_hugepages"
    before = hugepages.pool(size)
    lacking = POOLS[size] - (before.free - before.reserved)
    if lacking > 0 and not IN_LAB:
        pytest.skip(f"host has too few huge pages of {format_size(size)}; the lab makes its own")
    if lacking > 0:
        control.write_text(str(before.total + lacking))
    assert hugepages.pool(size).available >= POOLS[size] * size, (
        f"the lab has no huge pages of {format_size(size)}: start it with"
        f" `minivmm lab -m 4G --append '{MORE}'`"
    )
    yield size
    if lacking > 0:
        control.write_text(str(before.total))


@contextmanager
def a_region(page: int, pages: int) -> Iterator[Region]:
    region = Region(pages * page, Backing(kind="hugetlb", page_size=page))
    try:
        yield region
    finally:
        region.close()


def test_pages_are_taken_counted_and_given_back(page: int) -> None:
    """A block in the middle, as a guest would plug and unplug it."""
    free = hugepages.pool(page).free
    with a_region(page, 4) as region:
        assert region.usage() == Usage(0, 0)
        assert region.reads_allocate
        region.backing.check_host(region.size)

        region.populate(2 * page, page)
        region.view(3 * page - 4, 4)[:] = b"last"

        assert hugepages.pool(page).free == free - 1
        assert region.usage() == Usage(page, page)
        assert region.resident_in(2 * page, page) == page
        assert region.resident_in(0, 2 * page) == region.resident_in(3 * page, page) == 0
        assert region.resident_in(3 * page - 1, 1) == PAGE_SIZE

        region.discard(2 * page, page)

        assert hugepages.pool(page).free == free
        assert region.usage() == Usage(0, 0)
        assert region.resident_in(0, region.size) == 0


def test_the_start_is_aligned_for_pages_of_that_size(page: int) -> None:
    with a_region(page, 3) as region:
        assert region.hva % page == 0
        assert region.size == 3 * page


def test_running_out_is_an_error_and_no_signal(page: int) -> None:
    """OSError, and the pages that were taken stay until they are discarded."""
    pages = hugepages.pool(page).available // page
    with a_region(page, pages + 2) as region:
        assert region.room_for(pages * page)
        assert not region.room_for((pages + 1) * page)

        with pytest.raises(OSError, match="Bad address"):
            region.populate(0, region.size)

        assert region.usage() == Usage(pages * page, pages * page)
        assert not region.room_for(page)
        region.discard(0, region.size)
        assert region.usage() == Usage(0, 0)
        assert region.room_for(pages * page)


def test_pages_of_another_region_are_free_once_it_has_gone(page: int) -> None:
    pages = hugepages.pool(page).available // page
    with a_region(page, 1) as second:
        with a_region(page, pages) as first:
            first.populate(0, first.size)
            with pytest.raises(OSError, match="Bad address"):
                second.populate(0, page)

        second.populate(0, page)

        assert second.usage() == Usage(page, page)


def test_protected_pages_keep_their_content_and_can_be_given_back(page: int) -> None:
    with a_region(page, 2) as region:
        region.populate(page, page)
        region.view(page, 4)[:] = b"keep"

        region.protect(page, page, Access.NONE)
        assert region.resident_in(page, page) == page
        region.protect(page, page, Access.ALL)
        assert bytes(region.view(page, 4)) == b"keep"

        region.protect(page, page, Access.NONE)
        region.discard(page, page)
        assert region.usage() == Usage(0, 0)


def test_odd_sizes_are_rounded_up_to_whole_pages(page: int) -> None:
    region = Region(page + 1, Backing(kind="hugetlb", page_size=page))

    assert region.size == 2 * page
    region.close()
