"""How much host memory a mapping takes, as the kernel sees it: from smaps, or page by page.

What lies in a file but is not mapped is files.py's to count.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from minivmm.memory import libc
from minivmm.memory.libc import PAGE_SIZE
from minivmm.units import KIB

MAPS = Path("/proc/self/maps")
SMAPS = Path("/proc/self/smaps")
PAGEMAP = Path("/proc/self/pagemap")

_SMAPS_LINE = re.compile(
    rb"^([0-9a-f]+)-[0-9a-f]+ "
    rb"|^(Rss|Swap|AnonHugePages|ShmemPmdMapped|FilePmdMapped): +(\d+) kB$",
    re.MULTILINE,
)
_HELD = (b"Rss", b"Swap")
"""All pages of a mapping, except those of hugetlb; the other fields say which of them are huge."""

_RUNS = 512
"""Runs of pages asked for at once; a run is 24 bytes."""
_CHUNK = 1 << 30
"""Bytes of memory whose pagemap entries, 2 MiB of them, are read at once."""

# Top byte of a pagemap entry (Documentation/admin-guide/mm/pagemap.rst): bit 63 present, 62
# swapped, 56 mapped by us alone, which is true of every page of ours and of none of the zero pages.
_OCCUPIED = bytes(bool(top & 0x40 or (top & 0x80 and top & 0x01)) for top in range(256))

_THERE = re.compile(rb"[\x40-\xff]+")
"""Top bytes of entries of pages that are present or swapped."""


@dataclass(frozen=True)
class Usage:
    """Bytes of host memory, or swap, that a region holds, and how many of them in huge pages.

    `huge` counts what huge pages map: transparent ones (anonymous or shared memory), and hugetlb.
    """

    resident: int
    huge: int


def mapped(hva: int, length: int) -> Usage:
    """What mappings in [hva, hva + length) (bytes) hold, if not of hugetlb. No zero page counts.

    The kernel walks the page tables that exist, so empty memory of any size costs nothing; a GiB in
    base pages costs 10 ms, and so do 1500 pieces of different protection.
    """
    resident = huge = 0
    inside = False
    for line in _SMAPS_LINE.finditer(SMAPS.read_bytes()):
        start, name, kib = line.groups()
        if start is not None:
            inside = hva <= int(start, 16) < hva + length
        elif inside and name in _HELD:
            resident += int(kib) * KIB
        elif inside:
            huge += int(kib) * KIB
    return Usage(resident, huge)


def mapped_pages(hva: int, length: int) -> int:
    """Bytes of [hva, hva + length) that hold host memory or swap, looked up page by page.

    Zero pages do not count, pages that other processes map as well do neither. Walks what is there;
    kernels before 6.7 need 3 s for an empty TiB. Raises OSError.
    """
    total = 0
    with closing(_Pagemap()) as pagemap:
        for start, end in pagemap.runs(hva, hva + length):
            for at in range(start, end, _CHUNK):
                total += pagemap.occupied(at, min(end, at + _CHUNK))
    return total


def mapped_runs(hva: int, length: int) -> Iterator[tuple[int, int]]:
    """(start, length) of runs in [hva, hva + length) with pages, swapped out or zero pages as well.

    What is not in them was never touched. Raises OSError.
    """
    with closing(_Pagemap()) as pagemap:
        for start, end in pagemap.runs(hva, hva + length):
            for at in range(start, end, _CHUNK):
                yield from pagemap.present(at, min(end, at + _CHUNK))


def protections(hva: int, length: int) -> Iterator[tuple[int, int, int]]:
    """(start, length, PROT_*) of the mappings in [hva, hva + length), ascending."""
    for line in MAPS.read_text().splitlines():
        place, allowed, *_ = line.split(maxsplit=2)
        first, end = (int(number, 16) for number in place.split("-"))
        first, end = max(first, hva), min(end, hva + length)
        if first < end:
            access = libc.PROT_READ * (allowed[0] == "r") | libc.PROT_WRITE * (allowed[1] == "w")
            yield first, end - first, access


def pages_held(hva: int, length: int, pieces: int) -> list[int]:
    """Bytes that each of `pieces` neighbours of `length` bytes from `hva` holds, as mapped_pages.

    Reads 2 MiB of the kernel's tables for a GiB, empty or not (3 ms), so it is for bounded ranges.
    Raises OSError.
    """
    with closing(_Pagemap()) as pagemap:
        held = pagemap.flags(hva, hva + length * pieces)
    pages = length // PAGE_SIZE
    return [
        held.count(1, first, first + pages) * PAGE_SIZE for first in range(0, pieces * pages, pages)
    ]


class _Pagemap:
    """/proc/self/pagemap, opened."""

    def __init__(self) -> None:
        self._fd = os.open(PAGEMAP, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._fd)

    def runs(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Runs of pages that something is mapped at; all as one where the kernel cannot tell."""
        wanted = libc.PAGE_IS_PRESENT | libc.PAGE_IS_SWAPPED
        while start < end:
            try:
                runs, start = libc.scan_pages(self._fd, start, end, any_of=wanted, room=_RUNS)
            except OSError:
                yield start, end
                return
            yield from runs

    def present(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """(start, length) of runs of pages in [start, end) that are there in whatever way."""
        entries = os.pread(self._fd, (end - start) // PAGE_SIZE * 8, start // PAGE_SIZE * 8)
        for found in _THERE.finditer(entries[7::8]):
            pages = found.end() - found.start()
            yield start + found.start() * PAGE_SIZE, pages * PAGE_SIZE

    def occupied(self, start: int, end: int) -> int:
        """Bytes of [start, end) that hold memory or swap of ours."""
        return sum(self.flags(start, end)) * PAGE_SIZE

    def flags(self, start: int, end: int) -> bytes:
        """For each page of [start, end): 1 if it holds memory or swap of ours, else 0."""
        entries = os.pread(self._fd, (end - start) // PAGE_SIZE * 8, start // PAGE_SIZE * 8)
        return entries[7::8].translate(_OCCUPIED)
