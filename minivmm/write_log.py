"""Which guest memory was written, by vCPUs, by KVM and by ourselves: one log for all who ask.

KVM's log of a memslot is gone once it is read, so it is read for everybody at once. What KVM does
not see is told by those who do it: devices through their views of guest memory, discards, plugs
(reference H-18).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Protocol

from minivmm.kvm.hypervisor import HypervisorVm
from minivmm.memory.guest import GuestMemory
from minivmm.memslots import Memslot, Memslots

PAGE = 4096
"""Bytes that a bit of KVM's bitmap stands for."""

_STRETCH = 4096
"""Bytes of a bitmap that are passed over at once if they are all empty; 128 MiB of memory."""

_WRITTEN = re.compile(rb"\xff+|[^\0\xff]", re.DOTALL)
_BYTE = tuple(tuple(bit for bit in range(8) if byte >> bit & 1) for byte in range(256))
"""Numbers of the bits that are set in every byte."""


class Sink(Protocol):
    """Who is told."""

    def wrote(self, gpa: int, length: int) -> None:
        """These bytes may have changed. From any thread, quickly."""


class WriteLog:
    """The log of one machine; KVM keeps none while nobody asks. Call with the lock held."""

    def __init__(self, vm: HypervisorVm, memslots: Memslots, memory: GuestMemory) -> None:
        self._vm = vm
        self._memslots = memslots
        self._memory = memory
        self._sinks: tuple[Sink, ...] = ()

    def add(self, sink: Sink) -> None:
        """Tell `sink` from now on. Raises HostError if KVM cannot keep a log."""
        if self._sinks:
            self._read_all()  # what was written until now is no news for the new one
        else:
            self._memslots.log_to(self)
            for slot in self._memory.slots:
                slot.region.follow_writes(partial(self._told, slot.gpa))
        self._sinks += (sink,)

    def remove(self, sink: Sink) -> None:
        """Tell it no more. Harmless when repeated."""
        before, self._sinks = self._sinks, tuple(one for one in self._sinks if one is not sink)
        if before and not self._sinks:
            self._memslots.log_to(None)
            for slot in self._memory.slots:
                slot.region.follow_writes(None)

    def harvest(self) -> None:
        """Tell all sinks what was written until now. Raises HostError."""
        self._read_all()

    # -- MemslotLog ------------------------------------------------------------------------------

    def plugged(self, gpa: int, length: int) -> None:
        """Whatever was known of that memory is not true any more."""
        self._tell(gpa, length)

    def leaving(self, memslot: Memslot) -> None:
        """Its log is read before it is lost."""
        self._read(memslot)

    # --------------------------------------------------------------------------------------------

    def _read_all(self) -> None:
        for memslot in self._memslots.all:
            self._read(memslot)

    def _read(self, memslot: Memslot) -> None:
        for first, count in runs(self._vm.dirty_pages(memslot.number, memslot.length)):
            self._tell(memslot.gpa + first * PAGE, count * PAGE)

    def _told(self, base: int, offset: int, length: int) -> None:
        self._tell(base + offset, length)

    def _tell(self, gpa: int, length: int) -> None:
        for sink in self._sinks:
            sink.wrote(gpa, length)


def runs(bitmap: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """(first, count) of every run of set bits, lowest bit first; ascending.

    What is empty or full is passed over by the byte: 1 GiB of memory has 32 KiB of bits.
    """
    start = end = 0
    for first, count in _pieces(bitmap):
        if first == end:
            end += count
            continue
        if end > start:
            yield start, end - start
        start, end = first, first + count
    if end > start:
        yield start, end - start


def _pieces(bitmap: bytes | bytearray) -> Iterator[tuple[int, int]]:
    for start in range(0, len(bitmap), _STRETCH):
        stretch = bitmap[start : start + _STRETCH]
        if stretch.count(0) == len(stretch):
            continue
        for found in _WRITTEN.finditer(stretch):
            at, length = start + found.start(), found.end() - found.start()
            if bitmap[at] == 0xFF:
                yield at * 8, length * 8
            else:
                for bit in _BYTE[bitmap[at]]:
                    yield at * 8 + bit, 1
