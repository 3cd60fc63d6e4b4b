"""Regions that show a file (restored memory), are followed, and say where there is anything."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

from minivmm.memory.backing import Backing
from minivmm.memory.region import Access, Region
from minivmm.memory.usage import protections
from minivmm.units import KIB, MIB

PAGE = 4096
OLD = b"old content" * 100


@pytest.fixture
def file() -> Iterator[int]:
    """8 MiB that begin with OLD at every MiB."""
    with tempfile.TemporaryFile() as made:
        made.truncate(8 * MIB)
        for at in range(0, 8 * MIB, MIB):
            os.pwrite(made.fileno(), OLD, at)
        yield made.fileno()


@pytest.fixture
def region() -> Iterator[Region]:
    made = Region(16 * MIB)
    yield made
    made.close()


def test_a_file_is_shown_where_it_was_asked_for(region: Region, file: int) -> None:
    region.show(file, MIB, 4 * MIB, 2 * MIB)
    assert bytes(region.peek(4 * MIB, len(OLD))) == OLD
    assert bytes(region.peek(5 * MIB, len(OLD))) == OLD
    assert bytes(region.peek(6 * MIB, len(OLD))) == bytes(len(OLD))
    assert bytes(region.peek(4 * MIB - PAGE, PAGE)) == bytes(PAGE)


def test_what_is_written_is_not_in_the_file(region: Region, file: int) -> None:
    region.show(file, 0, 0, MIB)
    region.view(0, 4)[:] = b"mine"
    assert bytes(region.peek(0, 4)) == b"mine"
    assert os.pread(file, 4, 0) == OLD[:4]


def test_discarding_does_not_bring_the_files_content_back(region: Region, file: int) -> None:
    region.show(file, 0, 0, 8 * MIB)
    region.view(2 * MIB, 4)[:] = b"mine"
    region.discard(2 * MIB, 2 * MIB)
    assert bytes(region.peek(2 * MIB, 2 * MIB)) == bytes(2 * MIB)
    assert bytes(region.peek(MIB, len(OLD))) == OLD
    assert bytes(region.peek(4 * MIB, len(OLD))) == OLD
    region.view(3 * MIB, 4)[:] = b"more"
    region.discard(3 * MIB, PAGE)
    assert bytes(region.peek(3 * MIB, 4)) == bytes(4)


def test_discarding_keeps_what_is_forbidden(region: Region, file: int) -> None:
    region.show(file, 0, 0, 8 * MIB)
    region.protect(2 * MIB, MIB, Access.NONE)
    region.protect(3 * MIB, MIB, Access.READ)
    region.discard(MIB, 4 * MIB)
    found = {
        (start - region.hva + at): access
        for start, size, access in protections(region.hva + MIB, 4 * MIB)
        for at in range(0, size, MIB)
    }
    assert found == {
        MIB: Access.ALL,
        2 * MIB: Access.NONE,
        3 * MIB: Access.READ,
        4 * MIB: Access.ALL,
    }


def test_shared_memory_shows_no_files() -> None:
    region = Region(2 * MIB, Backing(kind="memfd"))
    assert not region.shows_files
    region.close()


def test_populated_passes_over_what_nobody_touched(region: Region, file: int) -> None:
    region.view(4 * MIB + 5 * PAGE, 1)[0] = 1
    region.show(file, 0, 10 * MIB, MIB)
    found = list(region.populated(0, 16 * MIB))
    assert found[-1] == (10 * MIB, MIB)
    assert all(size <= 2 * MIB for _, size in found)  # a huge page may have come for the byte
    assert any(at <= 4 * MIB + 5 * PAGE < at + size for at, size in found)
    assert list(region.populated(12 * MIB, 4 * MIB)) == []


def test_populated_of_shared_memory_takes_none() -> None:
    region = Region(16 * MIB, Backing(kind="memfd", thp="off"))
    region.view(4 * MIB, 1)[0] = 1
    assert list(region.populated(0, 16 * MIB)) == [(4 * MIB, 4 * KIB)]
    assert region.usage().resident == 4 * KIB
    region.close()


def test_populated_without_the_scan_of_newer_kernels(
    region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(25, "Inappropriate ioctl")

    monkeypatch.setattr("minivmm.memory.libc.scan_pages", refuse)
    region.view(6 * MIB, 1)[0] = 1
    found = list(region.populated(0, 16 * MIB))
    assert found[0][0] == 6 * MIB
    assert len(found) == 1


def test_followers_hear_of_views_and_discards_but_not_of_looks(region: Region) -> None:
    told: list[tuple[int, int]] = []
    region.follow_writes(lambda offset, length: told.append((offset, length)))
    region.peek(0, 8)
    region.view(MIB, 8)
    region.discard(2 * MIB, MIB)
    region.follow_writes(None)
    region.view(3 * MIB, 8)
    region.discard(2 * MIB, MIB)
    assert told == [(MIB, 8), (2 * MIB, MIB)]
    assert "view" not in vars(region)  # nothing is left in the way of those who write
