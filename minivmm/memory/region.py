"""One host mapping that backs guest memory: map, view, populate, discard, protect, count.

A region knows host addresses and bytes. Where the guest sees it is guest.py's business, and what
kind of memory it is backing.py's.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import IntFlag

from minivmm.errors import HostError
from minivmm.memory import hugepages, libc, room, usage
from minivmm.memory.backing import Backing
from minivmm.memory.files import MemoryFile, data_runs
from minivmm.memory.libc import PAGE_SIZE as PAGE_SIZE
from minivmm.memory.ranges import Range, common, merged, take_out
from minivmm.memory.usage import Usage
from minivmm.units import MIB, align_down, align_up, format_size

HUGE_ALIGNMENT = 2 * MIB
"""KVM maps huge pages only if gpa and hva agree in their low 21 bits (reference F.3)."""

_POPULATE_CHUNK = 16 * MIB
"""Bytes populated at once: 10 to 60 ms in which nobody can change the process's mappings."""

_ADVICE = {"on": libc.MADV_HUGEPAGE, "off": libc.MADV_NOHUGEPAGE}


class Access(IntFlag):
    """What CPUs and this process may do with pages; values are mprotect(2)'s."""

    NONE = libc.PROT_NONE
    READ = libc.PROT_READ
    ALL = libc.PROT_READ | libc.PROT_WRITE


class Region:
    """`size` bytes of memory of the given kind, nothing populated; `hva` is where it starts.

    `size` is rounded up to whole pages of the backing. The start is aligned to 2 MiB, or to the
    backing's page if that is larger. Raises HostError when the host cannot make or map it.
    """

    def __init__(self, size: int, backing: Backing = Backing()) -> None:  # noqa: B008 (frozen)
        self.backing = backing
        self.size = align_up(size, backing.page_size)
        self._file: MemoryFile | None = None
        self._told: Callable[[int, int], None] | None = None
        self._shown: list[Range] = []
        """Where a file shows, by offset."""
        self._forbids = False
        """Was access to any of it ever restricted?"""
        self.lends = True
        """May views be kept? Not while their uses have to be told of, nor once it is closed."""
        flags = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS
        if backing.kind != "anon":
            self._file = MemoryFile(self.size, page_size=backing.page_size, path=backing.path)
            flags = libc.MAP_SHARED
        try:
            self.hva = self._map(flags | libc.MAP_NORESERVE)
        except OSError as error:
            if self._file:
                self._file.close()
            raise HostError(
                f"cannot map {format_size(size)} of guest memory ({error}): use a smaller -m or"
                " size=, or set vm.overcommit_memory=1"
            ) from error
        self._advise(self.hva, self.size)
        self._view = libc.buffer(self.hva, self.size)

    @property
    def reads_allocate(self) -> bool:
        """Does reading what is empty take host memory?

        Private anonymous memory shows the shared zero page, all the others allocate (reference
        F.3), so their unplugged blocks must not be read (MEM-D-20).
        """
        return self._file is not None

    def view(self, offset: int, length: int) -> memoryview:
        """Writable view of `length` bytes at `offset`. The caller has checked the bounds."""
        return self._view[offset : offset + length]

    def peek(self, offset: int, length: int) -> memoryview:
        """The same to be read only: who follows the writes is not told."""
        return self._view[offset : offset + length]

    def is_zero(self, offset: int, length: int) -> bool:
        """Are [offset, offset + length) (bytes, page multiples) zeroes? Takes no private memory."""
        return libc.is_zero(self.hva + offset, length)

    def follow_writes(self, told: Callable[[int, int], None] | None) -> None:
        """Call `told` with (offset, length) in bytes of what this process may change, from now on.

        That is every view that is given out, and every discard, which may come from any thread.
        None ends it. While nobody follows, a view costs no instruction more, and may be kept as
        long as `lends` says so.
        """
        self.__dict__.pop("view", None)
        self._told = told
        self.lends = told is None
        if told is not None:

            def view(offset: int, length: int) -> memoryview:
                told(offset, length)
                return self._view[offset : offset + length]

            self.view = view  # type: ignore[method-assign]

    def populate(self, offset: int, length: int) -> None:
        """Take host memory for all of [offset, offset + length) (bytes, page multiples).

        Content stays. Raises OSError when the host has none left, having taken a part: EFAULT for
        hugetlb pages and full file systems, ENOMEM (reference F.12). EINVAL for kernels before
        5.14, and unless access is ALL.
        """
        chunk = max(_POPULATE_CHUNK, self.backing.page_size)
        end = offset + length
        for at in range(offset, end, chunk):
            libc.madvise(self.hva + at, min(chunk, end - at), libc.MADV_POPULATE_WRITE)

    def discard(self, offset: int, length: int) -> None:
        """Give [offset, offset + length) (bytes, page multiples) back to the host (reference E.6).

        It reads as zeroes afterwards. Raises OSError if the host refuses; then nothing is promised
        about the content, as for any unplugged memory.
        """
        if self._told is not None:
            self._told(offset, length)
        if self._shown:
            self._cover(offset, length)
        if self._file is not None:
            self._file.punch(offset, length)
        if self.backing.kind != "hugetlb":
            # Of shared memory this leaves page tables at most, which newer kernels free here.
            libc.madvise(self.hva + offset, length, libc.MADV_DONTNEED)

    def zero(self, offset: int, length: int) -> None:
        """Write zeroes to [offset, offset + length) (bytes), in the pages that are there."""
        libc.clear(self.hva + offset, length)

    def show(self, fd: int, file_offset: int, offset: int, length: int) -> None:
        """Let [offset, offset + length) be what `fd` has at `file_offset` (bytes, page multiples).

        Nothing is read or copied before it is touched, and what is written stays here: other
        processes that show the file share its pages. Only for private memory (`shows_files`), with
        access ALL. `fd` may be closed afterwards; the file must not change. Raises OSError.
        """
        flags = libc.MAP_PRIVATE | libc.MAP_FIXED | libc.MAP_NORESERVE
        where = self.hva + offset
        libc.mmap(length, Access.ALL, flags, fd=fd, hva=where, offset=file_offset)
        self._advise(where, length)
        take_out(self._shown, offset, length)
        insort(self._shown, (offset, length))

    @property
    def shows_files(self) -> bool:
        """Can parts of it show a file?"""
        return self._file is None

    def populated(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """(offset, length) of runs in [offset, offset + length) that may hold more than zeroes.

        Nothing is read, and no memory taken. Ascending, page multiples. Raises OSError.
        """
        if self._file is not None and self.backing.kind != "hugetlb":
            yield from data_runs(self._file.fd, offset, length)
            return
        touched = usage.mapped_runs(self.hva + offset, length)
        shown = common(self._shown, [(offset, length)])
        yield from merged([*((at - self.hva, size) for at, size in touched), *shown])

    def protect(self, offset: int, length: int, access: Access) -> None:
        """Allow `access` to [offset, offset + length) (bytes, page multiples); content stays.

        KVM notices at once. Raises OSError: ENOMEM if the mapping would fall into more pieces than
        vm.max_map_count allows; then some of the range may have changed.
        """
        self._forbids |= access != Access.ALL
        libc.mprotect(self.hva + offset, length, access)

    def room_for(self, length: int) -> bool:
        """Could the host populate `length` more bytes now? An estimate: others take memory too."""
        if self.backing.kind == "hugetlb":
            return hugepages.pool(self.backing.page_size).available >= length
        limit = self._file.room() if self._file else None
        return room.available() >= length and (limit is None or limit >= length)

    def usage(self) -> Usage:
        """Host memory that the region holds; costs nothing for what is empty (usage.mapped)."""
        if self._file is None:
            return usage.mapped(self.hva, self.size)
        held = self._file.allocated()
        if self.backing.kind == "hugetlb":
            return Usage(held, held)
        return Usage(held, usage.mapped(self.hva, self.size).huge)

    def resident_in(self, offset: int, length: int) -> int:
        """Bytes of host memory in [offset, offset + length) exactly, for an audit; walks it.

        Counts pages that the range touches, in memory or swapped out; zero pages do not count.
        """
        start, end = align_down(offset, PAGE_SIZE), align_up(offset + length, PAGE_SIZE)
        if self._file is None or self.backing.kind == "hugetlb":
            # Of hugetlb files it is not known where data is. All of it is mapped here.
            return usage.mapped_pages(self.hva + start, end - start)
        return self._file.allocated_in(start, end - start)

    def resident_pieces(self, offset: int, length: int, pieces: int) -> list[int]:
        """resident_in for each of `pieces` neighbours of `length` bytes (page multiples).

        Cheaper than one by one; still it looks at every page, so keep the whole to a GiB or so.
        """
        if self._file is None or self.backing.kind == "hugetlb":
            return usage.pages_held(self.hva + offset, length, pieces)
        ends = range(offset, offset + pieces * length, length)
        return [self._file.allocated_in(at, length) for at in ends]

    def close(self) -> None:
        """Unmap; every view of it is dead afterwards. Harmless when repeated."""
        if self.size:
            self.lends = False
            self._view.release()
            libc.munmap(self.hva, self.size)
            if self._file is not None:
                self._file.close()
            self.size = 0

    def _map(self, flags: int) -> int:
        """Map `size` bytes in the middle of a larger reservation, so that they are aligned."""
        alignment = max(HUGE_ALIGNMENT, self.backing.page_size)
        reserve = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS | libc.MAP_NORESERVE
        start = libc.mmap(self.size + alignment, libc.PROT_NONE, reserve)
        hva = align_up(start, alignment)
        end = start + self.size + alignment
        fd = self._file.fd if self._file else -1
        try:
            libc.mmap(self.size, Access.ALL, flags | libc.MAP_FIXED, fd=fd, hva=hva)
        except OSError:
            libc.munmap(start, end - start)
            raise
        if hva > start:
            libc.munmap(start, hva - start)
        libc.munmap(hva + self.size, end - hva - self.size)
        return hva

    def _cover(self, offset: int, length: int) -> None:
        """Where a file shows in the range, put empty memory over it.

        To give the pages back would bring the file's content back (reference H-9, F.12). What must
        not be touched must not be for a moment, hence PROT_NONE first.
        """
        flags = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS | libc.MAP_FIXED | libc.MAP_NORESERVE
        for at, size in take_out(self._shown, offset, length):
            hva = self.hva + at
            allowed = list(usage.protections(hva, size)) if self._forbids else []
            try:
                libc.mmap(size, libc.PROT_NONE if allowed else Access.ALL, flags, hva=hva)
            except OSError:  # too many mappings: the file still shows here
                insort(self._shown, (at, size))
                raise
            self._advise(hva, size)
            for start, some, access in allowed:
                libc.mprotect(start, some, access)

    def _advise(self, hva: int, length: int) -> None:
        """Best effort: a host kernel built without transparent huge pages knows no such advice."""
        # A child, before it executes a program, would keep what we discard.
        advice = [libc.MADV_DONTFORK]
        if self.backing.kind != "hugetlb" and self.backing.thp in _ADVICE:
            advice.append(_ADVICE[self.backing.thp])
        for one in advice:
            with suppress(OSError):
                libc.madvise(hva, length, one)
