"""The one range map: from an address (MMIO or port) to the device that answers it.

Also the contract of everything that sits on a bus (BusDevice), what a write can ask of the machine
(Action), and doorbells: writes that need not reach a vCPU thread.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class Action(Enum):
    """What a register write asks of the machine, once the lock is released (DESIGN.md 1.5)."""

    RESET = "reset"
    POWER_OFF = "power off"


class BusDevice(Protocol):
    """Registers at some range. `offset` is from the range's base, `size` is 1, 2, 4 or 8 bytes."""

    def read(self, offset: int, size: int) -> int:
        """The little-endian value of `size` bytes at `offset`; never raises for guest accesses."""

    def write(self, offset: int, size: int, value: int) -> Action | None:
        """Store the low `size` bytes of `value`; returns what the machine must do, if anything."""


class Doorbells(Protocol):
    """Binds guest writes at an address to a callback, past the vCPU threads where KVM can."""

    def bind(self, gpa: int, length: int, ring: Callable[[], None]) -> Callable[[], None]:
        """Call `ring` (lock held) for writes of `length` bytes at `gpa`; returns the unbinder."""


class Windows(Protocol):
    """Shows guests memory of devices, so that accesses to it need no exit."""

    def show(self, gpa: int, size: int, hva: int) -> Callable[[], None]:
        """Let the guest reach [`hva`, `hva` + `size`) at `gpa`, whole pages; returns the undoer.

        Raises HostError if the host cannot.
        """


@dataclass(frozen=True, slots=True)
class Mapping:
    """A device at [`base`, `base` + `size`) (bytes or ports)."""

    base: int
    size: int
    device: BusDevice
    name: str


class Bus:
    """Non-overlapping ranges with a device each. Reads of nothing give all ones, writes vanish."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._bases: list[int] = []
        self._mappings: list[Mapping] = []

    def add(self, base: int, size: int, device: BusDevice, *, name: str) -> None:
        """Map `device`. Raises ValueError if the range is empty or overlaps another."""
        at = bisect_right(self._bases, base)
        before = self._mappings[at - 1] if at else None
        after = self._mappings[at] if at < len(self._mappings) else None
        if size <= 0:
            raise ValueError(f"{self.name}: range of {name} has size {size}")
        for other in (before, after):
            if other and other.base < base + size and base < other.base + other.size:
                raise ValueError(f"{self.name}: {name} at {base:#x} overlaps {other.name}")
        self._bases.insert(at, base)
        self._mappings.insert(at, Mapping(base, size, device, name))

    def remove(self, base: int) -> None:
        """Unmap what was added at exactly `base`. Raises ValueError if nothing was."""
        at = self._bases.index(base)
        del self._bases[at]
        del self._mappings[at]

    def find(self, address: int) -> Mapping | None:
        """The mapping that contains `address`."""
        at = bisect_right(self._bases, address) - 1
        if at < 0:
            return None
        mapping = self._mappings[at]
        return mapping if address < mapping.base + mapping.size else None

    def overlaps(self, base: int, size: int) -> bool:
        """True if any mapping shares an address with [`base`, `base` + `size`)."""
        return any(m.base < base + size and base < m.base + m.size for m in self._mappings)

    def read(self, address: int, size: int) -> int:
        """Value of `size` bytes at `address`; all ones where nothing answers."""
        mapping = self.find(address)
        if mapping is None or address + size > mapping.base + mapping.size:
            return (1 << 8 * size) - 1
        return mapping.device.read(address - mapping.base, size)

    def write(self, address: int, size: int, value: int) -> Action | None:
        """Pass a write on; dropped where nothing answers."""
        mapping = self.find(address)
        if mapping is None or address + size > mapping.base + mapping.size:
            return None
        return mapping.device.write(address - mapping.base, size, value)

    def inspect(self) -> dict[str, object]:
        """Every mapping, by address."""
        return {f"{m.base:#x}+{m.size:#x}": m.name for m in self._mappings}
