"""Part: one of the three parts of a ring in guest memory, as bytes and as 16-bit words.

A ring in ordinary RAM stays where it is, so its view is kept. One in a sparse region can be
unplugged by the guest itself at any time (virtio-mem), and while somebody follows what is written
every view has to be told of (Region.lends): then each use asks GuestMemory anew, which fails
cleanly if that is RAM no more.
"""

from __future__ import annotations

from typing import Protocol

from minivmm.errors import DeviceBroken, GuestAddressError
from minivmm.memory.guest import GuestMemory


class _Lender(Protocol):
    lends: bool


class _Nobody:
    lends = False


_NOBODY = _Nobody()


class Part:
    """`length` bytes (even) at `gpa`, for queue `index`. Not looked at before it is used."""

    __slots__ = ("_bytes", "_gpa", "_index", "_lender", "_length", "_memory", "_words")

    def __init__(self, index: int, memory: GuestMemory, gpa: int, length: int) -> None:
        self._index = index
        self._memory = memory
        self._gpa = gpa
        self._length = length
        self._lender: _Lender = _NOBODY
        self._bytes = self._words = memoryview(b"")

    def bytes(self) -> memoryview:
        """All of it, writable, to be used at once. Raises DeviceBroken if it is not in one region.

        The same view may come again: slice it, but never release it.
        """
        if not self._lender.lends:
            self._look()
        return self._bytes

    def words(self) -> memoryview:
        """The same by 16-bit words, each loaded and stored in one machine access."""
        if not self._lender.lends:
            self._look()
        return self._words

    def _look(self) -> None:
        try:
            self._bytes = self._memory.view(self._gpa, self._length)
        except GuestAddressError as error:
            raise DeviceBroken(f"queue {self._index}: {error}") from error
        self._words = self._bytes.cast("H")
        self._lender = self._memory.lender(self._gpa) or _NOBODY
