"""Pages: what inflating and reporting mean for host memory, and how much of it there was.

It keeps no record of which pages are in the balloon: nothing can get stale when memory is unplugged
(virtio-mem), and a page that the guest uses again simply is populated again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from minivmm.errors import GuestAddressError
from minivmm.memory.guest import GuestMemory
from minivmm.spec.virtio_balloon import PAGE_SHIFT
from minivmm.virtio.device import Signals

PAGE = 1 << PAGE_SHIFT


class Pages:
    """Gives guest memory back to the host; counts bytes by what became of them."""

    def __init__(self, memory: GuestMemory, signals: Signals) -> None:
        self.freed = 0
        self.kept = 0
        """In huge pages, which only come as a whole, or because the host refused."""
        self.refused = 0
        """Not RAM, or unplugged: such memory is not ours to give back, nor to populate."""
        self._memory = memory
        self._signals = signals

    def give_back_numbered(self, numbers: Iterable[int]) -> None:
        """Pages by number (gpa / 4096), in any order; one that is refused stops no others."""
        for gpa, length in _runs(numbers):
            try:
                self._discard(gpa, length)
            except GuestAddressError:
                for at in range(gpa, gpa + length, PAGE):
                    self.give_back(at, PAGE)

    def give_back(self, gpa: int, length: int) -> None:
        """[gpa, gpa + length), in bytes, all or nothing."""
        try:
            self._discard(gpa, length)
        except GuestAddressError as error:
            self.refused += length
            self._signals.trace("refused", why=str(error))

    def load(self, saved: Any) -> None:
        """Go on counting from what was saved."""
        self.freed, self.kept, self.refused = saved.freed, saved.kept, saved.refused

    def inspect(self) -> dict[str, object]:
        """The counts, in bytes."""
        return {"freed": self.freed, "kept": self.kept, "refused": self.refused}

    def _discard(self, gpa: int, length: int) -> None:
        """Raises GuestAddressError if any of it is not plugged RAM."""
        try:
            freed = self._memory.discard(gpa, length)
        except OSError as error:
            freed = 0
            self._signals.trace("kept", gpa=f"{gpa:#x}", length=length, why=str(error))
        self.freed += freed
        self.kept += length - freed


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """(gpa, length) in bytes of the longest runs of neighbours among pages; each page once."""
    first = end = -1
    for number in sorted(set(numbers)):
        if number != end:
            if end > first:
                yield first << PAGE_SHIFT, end - first << PAGE_SHIFT
            first = number
        end = number + 1
    if end > first:
        yield first << PAGE_SHIFT, end - first << PAGE_SHIFT
