"""Guest memory on its way: read into PAGES frames at the source, filled in at the target.

What to read and how to find zeroes in it is snapshot/ram.py's; here it is cut to frames and back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from minivmm.errors import GuestAddressError, MigrationError, MinivmmError
from minivmm.memory.guest import GuestMemory, Slot
from minivmm.migration.wire import PAGES_DATA, RUNS_MAX, Run, build_pages, parse_pages
from minivmm.snapshot import ram
from minivmm.units import MIB, align_up

_GRANULE = 2 * MIB
"""A target remembers in such units what it has filled."""


def pieces(gpa: int, size: int, unit: int) -> Iterator[tuple[int, int]]:
    """[gpa, gpa + size) cut where addresses are multiples of `unit`."""
    end = gpa + size
    while gpa < end:
        stop = min(end, align_up(gpa + 1, unit))
        yield gpa, stop - gpa
        gpa = stop


class Packer:
    """Gathers pages until a frame is full, which `send` then gets with the bytes it stands for."""

    def __init__(self, send: Callable[[bytes, int, int], None]) -> None:
        self._send = send
        self._runs: list[Run] = []
        self._data = 0
        self._zeroes = 0

    def add(self, gpa: int, data: bytes) -> None:
        """`data`, whole pages and at most PAGES_DATA bytes, is at `gpa`."""
        if self._data + len(data) > PAGES_DATA:
            self.flush()
        end, whole = 0, memoryview(data)
        for offset, length in ram.nonzero(data):
            self.add_zeroes(gpa + end, offset - end)
            end = offset + length
            self._append(Run(gpa + offset, length, whole[offset:end]))
            self._data += length
        self.add_zeroes(gpa + end, len(data) - end)

    def add_zeroes(self, gpa: int, size: int) -> None:
        """Nothing but zeroes is in [gpa, gpa + size); nothing is done if `size` is 0."""
        if size:
            self._append(Run(gpa, size, None))
            self._zeroes += size

    def flush(self) -> None:
        """Send what there is."""
        if self._runs:
            runs, data, zeroes = self._runs, self._data, self._zeroes
            self._runs, self._data, self._zeroes = [], 0, 0
            self._send(build_pages(runs), data, zeroes)

    def _append(self, run: Run) -> None:
        if len(self._runs) == RUNS_MAX:
            self.flush()
        self._runs.append(run)


class Filler:
    """Fills the memory of a target, which was empty. For one thread, before the machine starts."""

    def __init__(self, memory: GuestMemory, populated: frozenset[str]) -> None:
        self._memory = memory
        self._populated = populated
        """Names of regions whose memory is taken in advance, and must not be given back."""
        self._filled: set[int] = set()

    def fill(self, payload: bytes) -> int:
        """Take what a PAGES frame carries; the bytes it stands for. Raises MigrationError."""
        total = 0
        for run in parse_pages(payload):
            try:
                self._take(run)
            except GuestAddressError as error:
                raise MigrationError(
                    f"migration stream: pages outside of memory: {error}"
                ) from None
            except (MinivmmError, OSError) as error:
                raise MigrationError(f"the host has no memory for {run.gpa:#x}: {error}") from None
            total += run.size
        return total

    def _take(self, run: Run) -> None:
        if run.data is None:
            self._zero(run.gpa, run.size)
            return
        self._memory.write(run.gpa, bytes(run.data))
        last = (run.gpa + run.size - 1) // _GRANULE
        self._filled.update(range(run.gpa // _GRANULE, last + 1))

    def _zero(self, gpa: int, size: int) -> None:
        """What was never filled is zeroes already, if the host gave it to us as that."""
        slot = self._slot(gpa, size)
        if slot.region.backing.kind == "anon":
            for at, some in pieces(gpa, size, _GRANULE):
                if at // _GRANULE in self._filled:
                    self._clear(slot, at, some)
        else:
            for at, some in pieces(gpa, size, PAGES_DATA):
                self._clear(slot, at, some)

    def _clear(self, slot: Slot, gpa: int, size: int) -> None:
        if slot.name not in self._populated:
            ram.clear(self._memory, gpa, size)
            return
        for offset, length in ram.nonzero(bytes(self._memory.peek(gpa, size))):
            self._memory.write(gpa + offset, bytes(length))

    def _slot(self, gpa: int, size: int) -> Slot:
        """The region with all of these bytes, which are memory. Raises GuestAddressError."""
        for slot in self._memory.slots:
            if slot.gpa <= gpa and gpa + size <= slot.end:
                offset = gpa - slot.gpa
                if slot.occupancy is None or slot.occupancy.covers(offset, size):
                    return slot
        raise GuestAddressError(gpa, size, "not in guest RAM")
