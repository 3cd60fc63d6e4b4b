"""Interrupt pins: which line of the I/O APIC a slot's INTA# pulls, and how slots share a line.

When a function asserts its pin is function.py's; how a line reaches a CPU is irq.py's.
"""

from __future__ import annotations

from minivmm.irq import InterruptController, IrqLine
from minivmm.spec.platform import FIRST_PCI_GSI, PCI_GSIS, pci_gsi


class SharedLine:
    """A line that many pins pull: asserted while at least one of them is (PCI 2.2.6)."""

    def __init__(self, line: IrqLine) -> None:
        self._line = line
        self._pulling = 0

    def pull(self, level: bool) -> None:
        """One pin more, or less, is asserted; the line hears only of what changes it."""
        before, self._pulling = self._pulling, self._pulling + (1 if level else -1)
        if bool(before) != bool(self._pulling):
            self._line.set(level)


class Pin:
    """The IrqLine of one function: its share in a line."""

    def __init__(self, line: SharedLine) -> None:
        self._line = line
        self._level = False

    def set(self, level: bool) -> None:
        """Assert or release; harmless when repeated."""
        if level != self._level:
            self._level = level
            self._line.pull(level)


class PinRouter:
    """The wires of the board from slots to lines, as the DSDT's _PRT describes them."""

    def __init__(self, interrupts: InterruptController) -> None:
        gsis = range(FIRST_PCI_GSI, FIRST_PCI_GSI + PCI_GSIS)
        self._lines = {gsi: SharedLine(interrupts.line(gsi)) for gsi in gsis}

    def pin(self, slot: int) -> Pin:
        """A pin for the function in `slot` of bus 0."""
        return Pin(self._lines[pci_gsi(slot)])
