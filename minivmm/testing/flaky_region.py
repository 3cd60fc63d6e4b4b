"""A region on a host that refuses services when a test says so, and populates next to nothing."""

from __future__ import annotations

from minivmm.memory.backing import Backing
from minivmm.memory.region import Access, Region


class FlakyRegion(Region):
    """`size` bytes in `blocks` equal blocks, of which populate() takes the first page."""

    def __init__(self, size: int, backing: Backing, blocks: int) -> None:
        super().__init__(size, backing)
        self._block = size // blocks
        self.fails = ""
        """populate or discard: that method fails until further notice."""
        self.protects_until_failure = 0
        """Of so many calls of protect() from now the last one fails; 0: none."""
        self.failures = 0
        """Calls of populate() and discard() that failed."""
        self.failed_protects = 0
        self.access = [Access.ALL] * blocks
        """Of every block, as protect() left it."""

    def populate(self, offset: int, length: int) -> None:
        """Take a page of each block. Raises OSError, if it shall fail, with a part of it taken."""
        for at in range(offset, offset + length, self._block):
            page = self.view(at, 1)
            page[0] = page[0]
        self._maybe_fail("populate")

    def discard(self, offset: int, length: int) -> None:
        """As Region. Raises OSError, if it shall fail, with nothing discarded."""
        self._maybe_fail("discard")
        super().discard(offset, length)

    def protect(self, offset: int, length: int, access: Access) -> None:
        """As Region. Raises OSError, if it shall fail, with nothing changed."""
        if self.protects_until_failure:
            self.protects_until_failure -= 1
            if not self.protects_until_failure:
                self.failed_protects += 1
                raise OSError("protect refused")
        super().protect(offset, length, access)
        for block in range(offset // self._block, (offset + length) // self._block):
            self.access[block] = access

    def _maybe_fail(self, name: str) -> None:
        if self.fails == name:
            self.failures += 1
            raise OSError(f"{name} refused")
