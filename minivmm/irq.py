"""How a device or bus raises an interrupt, without knowing KVM.

The machine supplies an InterruptController; tests supply a fake one (minivmm.testing).
"""

from __future__ import annotations

from typing import Protocol


class Interrupt(Protocol):
    """Something that can be signalled once per call: edge semantics."""

    def signal(self) -> None:
        """Raise the interrupt."""


class IrqLine(Protocol):
    """A level-triggered interrupt pin."""

    def set(self, level: bool) -> None:
        """Assert (True) or release (False) the pin."""


class MsiRoute(Protocol):
    """One message-signalled interrupt: where it goes is the guest's choice."""

    def route(self, address: int, data: int) -> None:
        """Deliver later signals as the MSI message (64-bit address, 32-bit data)."""

    def signal(self) -> None:
        """Send the message that was routed last."""


class EventRoute(MsiRoute, Protocol):
    """A message that somebody else may send, who knows nothing but an eventfd."""

    @property
    def fd(self) -> int:
        """The eventfd: writes send the message."""

    def mute(self) -> None:
        """Keep signals, until the next route()."""

    @property
    def due(self) -> bool:
        """Was it signalled while muted?"""


class IrqWire(Protocol):
    """A share in a level-triggered pin for somebody else, who works it by eventfds."""

    @property
    def trigger(self) -> int:
        """Writes assert the pin; it is released when the guest's CPU has served it."""

    @property
    def served(self) -> int:
        """Written to when that was: whoever still needs service shall write to `trigger` again."""

    def connect(self, connected: bool) -> None:
        """Let writes to `trigger` through, or not. Harmless when repeated."""


class InterruptController(Protocol):
    """Hands out interrupts; all are released with the machine."""

    def line(self, gsi: int) -> IrqLine:
        """The pin with global system interrupt number `gsi` (0..23)."""

    def msi(self) -> MsiRoute:
        """A new message-signalled interrupt; it must be routed before it is signalled."""


class EventInterrupts(Protocol):
    """Hands out interrupts for devices that are not ours; all are released with the machine."""

    def msi(self) -> EventRoute:
        """A new message-signalled interrupt; it must be routed before it is signalled."""

    def wire(self, gsi: int) -> IrqWire:
        """A new share in pin `gsi` (0..23), not connected; others keep theirs."""
