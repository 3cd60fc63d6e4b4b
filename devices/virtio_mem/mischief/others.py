"""Rules about reads of the configuration space and about configuration interrupts."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.devices.virtio_mem.mischief.actions import MOST_COPIES, resize_device
from minivmm.devices.virtio_mem.mischief.rules import Rule, When
from minivmm.errors import UsageError
from minivmm.options import unknown
from minivmm.spec.virtio_mem import MemConfig
from minivmm.units import format_size

FIELDS = {
    name.replace("_", "-"): (offset, width)
    for offset, width, name in MemConfig.layout()
    if name != "padding"
}
"""Outside name of every field: offset and width in bytes."""

_FORMATS = {2: "<H", 8: "<Q"}


@dataclass(frozen=True)
class ConfigAction:
    """`before` is called before the read, `show` is what the whole field reads as."""

    text: str
    before: Callable[[VirtioMem], None] | None = None
    show: int | None = None


def show(value: int) -> ConfigAction:
    """The field reads as `value`, whatever it is; neither generation nor interrupt tells of it."""
    return ConfigAction(f"show {value:#x}", show=value)


def resize_now(size: int) -> ConfigAction:
    """The host sets requested_size to `size` bytes just before the read, with all that is due."""
    return ConfigAction(
        f"resize to {format_size(size)}", before=lambda device: resize_device(device, size)
    )


class ConfigRule(Rule):
    """About reads of bytes of `field`, such as "block-size". Linux reads 64 bits as two halves.

    Raises UsageError for a field that there is not, and for a value that it cannot hold.
    """

    def __init__(self, field: str, when: When) -> None:
        if field not in FIELDS:
            raise UsageError(unknown("field of the configuration space", field, list(FIELDS)))
        super().__init__(f"read of {field}", when)
        self._offset, self._width = FIELDS[field]
        self.actions: list[ConfigAction] = []

    @property
    def doing(self) -> str:
        """Its actions."""
        return ", ".join(action.text for action in self.actions)

    def do(self, *actions: ConfigAction) -> Self:
        """Do these as well. Raises UsageError for values that do not fit into the field."""
        for action in actions:
            if action.show is not None and not 0 <= action.show < 1 << 8 * self._width:
                raise UsageError(f"{action.show:#x} does not fit into {8 * self._width} bits")
        self.actions += actions
        return self

    def applies(self, offset: int, size: int) -> bool:
        """Is the rule about a read of `size` bytes at `offset`?"""
        return offset < self._offset + self._width and self._offset < offset + size

    def before(self, device: VirtioMem) -> None:
        """The read comes."""
        device.signals.trace("mischief", type=self.about, what=self.doing)
        for action in self.actions:
            if action.before is not None:
                action.before(device)

    def paint(self, space: bytearray) -> None:
        """Change what is read."""
        for action in self.actions:
            if action.show is not None:
                struct.pack_into(_FORMATS[self._width], space, self._offset, action.show)


def drop() -> int:
    """For InterruptRule.do: the interrupt is not sent."""
    return 0


def repeat(times: int = 2) -> int:
    """For InterruptRule.do: the interrupt is sent `times` times. Raises UsageError."""
    if not 1 <= times <= MOST_COPIES:
        raise UsageError(f"repeat {times} is out of range: use 1 to {MOST_COPIES}")
    return times


class InterruptRule(Rule):
    """About configuration interrupts; those of the queue go with requests (actions.py)."""

    def __init__(self, when: When) -> None:
        super().__init__("config interrupt", when)
        self.times: int | None = None

    @property
    def doing(self) -> str:
        """How often it is sent."""
        return {None: "", 0: "drop"}.get(self.times, f"send {self.times} times")

    def do(self, times: int) -> Self:
        """drop() or repeat()."""
        self.times = times
        return self
