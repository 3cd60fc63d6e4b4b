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


class InterruptController(Protocol):
    """Hands out interrupts; all are released with the machine."""

    def line(self, gsi: int) -> IrqLine:
        """The pin with global system interrupt number `gsi` (0..23)."""

    def msi(self) -> MsiRoute:
        """A new message-signalled interrupt; it must be routed before it is signalled."""
