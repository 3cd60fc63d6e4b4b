"""Declared registers: a table of (offset, width, read, write) becomes a BusDevice.

Accesses must match a register exactly, except that a 64-bit register may also be reached as two
32-bit halves (PCI-D-4). Everything else reads 0 and ignores writes (reference B.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from minivmm.bus import Action

Read = Callable[[], int]
Write = Callable[[int], Action | None]


@dataclass(frozen=True, slots=True)
class Register:
    """One register: `width` in bytes (1, 2, 4, 8); `write` is None for read-only ones."""

    offset: int
    width: int
    name: str
    read: Read
    write: Write | None = None


def constant(value: int) -> Read:
    """A reader that always gives `value`."""
    return lambda: value


class RegisterFile:
    """The BusDevice made from a register table. Raises ValueError if registers overlap."""

    def __init__(self, registers: Iterable[Register]) -> None:
        self.registers = tuple(sorted(registers, key=lambda r: r.offset))
        end = 0
        self._readers: dict[tuple[int, int], Read] = {}
        self._writers: dict[tuple[int, int], Write] = {}
        for register in self.registers:
            if register.offset < end:
                raise ValueError(f"register {register.name} overlaps its predecessor")
            end = register.offset + register.width
            self._declare(register)

    def _declare(self, register: Register) -> None:
        offset, read, write = register.offset, register.read, register.write
        self._readers[offset, register.width] = read
        if write:
            self._writers[offset, register.width] = write
        if register.width != 8:
            return
        self._readers[offset, 4] = lambda: read() & 0xFFFFFFFF
        self._readers[offset + 4, 4] = lambda: read() >> 32
        if write:
            self._writers[offset, 4] = lambda value: write(read() >> 32 << 32 | value)
            self._writers[offset + 4, 4] = lambda value: write(value << 32 | (read() & 0xFFFFFFFF))

    def read(self, offset: int, size: int) -> int:
        """Value of the register of `size` bytes at `offset`, or 0."""
        reader = self._readers.get((offset, size))
        return reader() if reader else 0

    def write(self, offset: int, size: int, value: int) -> Action | None:
        """Write the register of `size` bytes at `offset`; other writes are dropped."""
        writer = self._writers.get((offset, size))
        return writer(value) if writer else None
