"""What the driver programs for one queue before it is live: size, three addresses, enable."""

from __future__ import annotations

from enum import Enum
from typing import Any

from minivmm.errors import DeviceBroken
from minivmm.units import is_power_of_two
from minivmm.virtio.queue.queue import QueueLayout

_NONE = 0xFFFF_FFFF
"""No size was refused; sizes have 16 bits."""


class Part(Enum):
    """The three areas of a queue, by the names of the common configuration."""

    DESCRIPTORS = "descriptors"
    DRIVER = "driver"
    DEVICE = "device"


class QueueRegisters:
    """One queue's registers; frozen once it is enabled, until reset."""

    def __init__(self, max_size: int) -> None:
        self.max_size = max_size
        self.packed = False
        """Is the queue a packed one, whose size need not be a power of two?"""
        self.reset()

    def reset(self) -> None:
        """Back to the defaults: largest size, no addresses, disabled (PCI-D-13, PCI-D-14)."""
        self.enabled = False
        self._chosen_size: int | None = None
        self._refused_size: int | None = None
        self._addresses = dict.fromkeys(Part, 0)

    @property
    def size(self) -> int:
        """Descriptors: as the driver chose, by default the most that the format can have."""
        if self._chosen_size is not None:
            return self._chosen_size
        return self.max_size if self.packed else 1 << self.max_size.bit_length() - 1

    def set_size(self, size: int) -> None:
        """Descriptors, written by the driver. Sizes that the format forbids are not taken over.

        They are remembered, though: the driver believes in them, so layout() fails (PCI-D-16, B.7).
        """
        if self.enabled:
            return
        if 1 <= size <= self.max_size and (self.packed or is_power_of_two(size)):
            self._chosen_size, self._refused_size = size, None
        else:
            self._refused_size = size

    def address(self, part: Part) -> int:
        """Guest physical address of `part`."""
        return self._addresses[part]

    def set_address(self, part: Part, gpa: int) -> None:
        """Guest physical address of `part`, written by the driver; judged when the queue opens."""
        if not self.enabled:
            self._addresses[part] = gpa

    def save(self) -> dict[str, object]:
        """Values of saved.QUEUE; `packed` follows from the features."""
        return {
            "enabled": self.enabled,
            "size": self._chosen_size or 0,
            "refused": _NONE if self._refused_size is None else self._refused_size,
            "addresses": [self._addresses[part] for part in Part],
        }

    def load(self, saved: Any, *, packed: bool) -> None:
        """Take values of saved.QUEUE over. Raises DeviceBroken for a size that cannot be."""
        self.reset()
        self.packed = packed
        if saved.size:
            self.set_size(saved.size)
        if self._refused_size is not None:
            raise DeviceBroken(f"queue size {saved.size} is not one up to {self.max_size}")
        self._refused_size = None if saved.refused == _NONE else saved.refused
        self._addresses = dict(zip(Part, saved.addresses, strict=True))
        self.enabled = saved.enabled

    def layout(self) -> QueueLayout:
        """Everything as the queue formats want it. Raises DeviceBroken if a size was refused."""
        if self._refused_size is not None:
            kind = "a size" if self.packed else "a power of two"
            raise DeviceBroken(
                f"queue size {self._refused_size} is not {kind} up to {self.max_size}"
            )
        return QueueLayout(
            self.size,
            self._addresses[Part.DESCRIPTORS],
            self._addresses[Part.DRIVER],
            self._addresses[Part.DEVICE],
        )
