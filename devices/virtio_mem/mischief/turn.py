"""Turn: what is to become of one request; rules change it before the device sees the request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.devices.virtio_mem.messages import Request


@dataclass
class Turn:
    """Without changes: the request is done and answered as it should be."""

    device: VirtioMem
    request: Request
    answer: int | None = None
    """Answer with this type, and do nothing of what was asked; None: do it."""
    state: int = 0
    """`state` of that answer: a BlockState."""
    silent: bool = False
    """Do nothing, and never answer."""
    refused: bool = False
    """The host refuses its part of a PLUG, UNPLUG or UNPLUG_ALL: populating, discarding."""
    response: bytes | None = None
    """These bytes in place of whatever answer was given."""
    written: int | None = None
    """So many bytes of the answer reach the driver's buffer, which keeps the rest as it was."""
    used_length: int | None = None
    """used.len; None: as many bytes as were written."""
    copies: int = 1
    """So many used elements tell of the request."""
    ahead: int = 0
    """used.idx is so much larger than it should be."""
    interrupts: int = 1
    """0: none; 2: one that is needed, and another."""
    seconds: float = 0.0
    """The answer comes so much later."""

    @property
    def done(self) -> bool:
        """Does the device get to see the request?"""
        return self.answer is None and not self.silent

    @property
    def plain(self) -> bool:
        """Is nothing wrong with it?"""
        return self == Turn(self.device, self.request)


@dataclass(frozen=True)
class Action:
    """What a rule does about a request; `text` says it to people."""

    text: str
    apply: Callable[[Turn], None]
