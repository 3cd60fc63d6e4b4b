"""RamFile: the `ram` file of a snapshot while it is written, pass by pass, and its checksums.

What is to be stored is taken.py's to decide; how the file is laid out is told in index.py.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from minivmm.memory import libc
from minivmm.memory.ranges import Range, common, merged, without
from minivmm.snapshot.index import CHUNK, Index, Place
from minivmm.snapshot.ram import nonzero
from minivmm.units import align_down, align_up

_LEAST_GAP = 16 * 4096
"""Bytes of zeroes between runs that are stored as part of one: mapping it costs more."""

_MOST_RUNS = 4096
"""Runs of a file; each becomes a mapping when it is restored (vm.max_map_count is 65530)."""


class RamFile:
    """A new sparse file at `path`, all holes. Methods raise OSError, ENOSPC above all."""

    def __init__(self, path: Path, places: Sequence[Place]) -> None:
        self.index = Index(
            size=align_up(max(place.offset + place.size for place in places), CHUNK),
            places=tuple(places),
            layers=(),
            runs=(),
            checksums=(),
        )
        """Empty; says where everything is."""
        self.written = 0
        """Bytes stored so far, rewritten ones again."""
        self.held: list[Range] = []
        """(gpa, size) of what is not zeroes, by address; as of the last end_pass()."""
        self._fresh: list[Range] = []
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(self._fd, self.index.size)
        except OSError:
            self.close()
            raise

    def store(self, gpa: int, data: bytes) -> None:
        """Store what is at `gpa` now, whole pages of one region; zeroes are holes."""
        offset = self.index.offset(gpa)
        view = memoryview(data)
        for at, length in nonzero(data):
            done = 0
            while done < length:
                piece = view[at + done : at + length]
                done += os.pwrite(self._fd, piece, offset + at + done)
            self.written += length
            self._fresh.append((gpa + at, length))

    def end_pass(self, ranges: Sequence[Range]) -> None:
        """All of `ranges` (gpa, size; disjoint, by address) was looked at since the last call.

        What of it was not stored now is not held any more, whatever was stored before.
        """
        fresh, self._fresh = merged(self._fresh), []
        self._clear(common(self.held, without(ranges, fresh)))
        self.held = merged([*without(self.held, ranges), *fresh])

    def drop(self, ranges: Sequence[Range]) -> None:
        """Hold nothing of `ranges`: it is not memory any more."""
        self._clear(common(self.held, ranges))
        self.held = without(self.held, ranges)

    def runs(self) -> list[Range]:
        """What is held in few runs, for which zeroes between them are counted in."""
        gap = _LEAST_GAP
        while len(found := merged(self.held, gap)) > _MOST_RUNS:
            gap *= 2
        return found

    def checksums(self, go_on: Callable[[], None]) -> tuple[tuple[int, int], ...]:
        """(number, CRC-32) of every chunk that is not all zeroes; `go_on` may raise in between."""
        found: list[tuple[int, int]] = []
        chunks = {
            at // CHUNK
            for gpa, size in self.held
            for at in range(
                align_down(self.index.offset(gpa), CHUNK),
                align_up(self.index.offset(gpa) + size, CHUNK),
                CHUNK,
            )
        }
        for chunk in sorted(chunks):
            go_on()
            found.append((chunk, checksum(self._fd, chunk)))
        return tuple(found)

    def close(self) -> None:
        """Close the file. Harmless when repeated."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _clear(self, ranges: Sequence[Range]) -> None:
        for gpa, size in ranges:
            offset = self.index.offset(gpa)
            try:
                libc.punch_hole(self._fd, offset, size)
            except OSError:  # a file system without holes
                for at in range(offset, offset + size, CHUNK):
                    os.pwrite(self._fd, bytes(min(CHUNK, offset + size - at)), at)


def checksum(fd: int, chunk: int) -> int:
    """CRC-32 of chunk number `chunk` of a file. Raises OSError."""
    return zlib.crc32(os.pread(fd, CHUNK, chunk * CHUNK))
