"""The ports that reset the machine or turn it off, and the power button. They only say what to do.

Port numbers and values are minivmm's own (spec/platform.py); ACPI tables tell the guest of them.
"""

from __future__ import annotations

from minivmm.bus import Action
from minivmm.irq import IrqLine
from minivmm.registers import Register, RegisterFile, constant
from minivmm.saved import Form, build, parse
from minivmm.spec.platform import (
    POWER_EVENT_PORT,
    POWER_PORT,
    RESET_PORT,
    RESET_VALUE,
    SLEEP_CONTROL_PORT,
    SLEEP_STATUS_PORT,
    SLEEP_TYPE_S5,
)

_FORM = Form("minivmm.devices.saved", "POWER")

PORTS = 4
"""I/O ports of PowerPorts."""

SLEEP_ENABLE = 1 << 5
"""SLP_EN of the sleep control register (ACPI 6.5, 4.8.3.7)."""
SLEEP_TYPE_SHIFT = 2
SLEEP_TYPE_MASK = 0b111

KEYBOARD_RESET = 0xFE
"""i8042 command: pulse output line 0, which is wired to the CPU's reset."""


class PowerPorts:
    """Reset register, sleep control and status, power button event: a BusDevice of 4 ports."""

    def __init__(self, line: IrqLine) -> None:
        self._line = line
        self._pressed = False
        self._registers = RegisterFile(
            [
                Register(RESET_PORT - POWER_PORT, 1, "reset", constant(0), self._write_reset),
                Register(
                    SLEEP_CONTROL_PORT - POWER_PORT, 1, "sleep", constant(0), self._write_sleep
                ),
                Register(SLEEP_STATUS_PORT - POWER_PORT, 1, "sleep status", constant(0)),
                Register(POWER_EVENT_PORT - POWER_PORT, 1, "power event", self._take_event),
            ]
        )

    def read(self, offset: int, size: int) -> int:
        """Value of the register at `offset`; only the power event is ever other than 0."""
        return self._registers.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> Action | None:
        """RESET for the reset value, POWER_OFF for entering S5; all else is ignored."""
        return self._registers.write(offset, size, value)

    def press_button(self) -> None:
        """Press and release the power button: the guest sees one event, on an edge of its GSI."""
        self._pressed = True
        self._line.set(True)
        self._line.set(False)

    def reset(self) -> None:
        """Forget a press that the guest has not read."""
        self._pressed = False

    def save_state(self) -> bytes:
        """Whether a press of the button waits for the guest."""
        return build(_FORM, pressed=self._pressed)

    def load_state(self, data: bytes) -> None:
        """Take that over; the interrupt that told of it is not repeated. Raises BadState."""
        self._pressed = parse("power", _FORM, data).pressed

    def inspect(self) -> dict[str, object]:
        """Whether a press of the button waits for the guest."""
        return {"power-button-pending": self._pressed}

    def _take_event(self) -> int:
        pressed, self._pressed = self._pressed, False
        return int(pressed)

    def _write_reset(self, value: int) -> Action | None:
        return Action.RESET if value == RESET_VALUE else None

    def _write_sleep(self, value: int) -> Action | None:
        kind = value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK
        return Action.POWER_OFF if value & SLEEP_ENABLE and kind == SLEEP_TYPE_S5 else None


class KeyboardPort:
    """What is left of the keyboard controller: its command port (1 port), for the reset pulse."""

    def read(self, offset: int, size: int) -> int:
        """Controller status: nothing to read, ready for commands (so nobody waits for it)."""
        return 0

    def write(self, offset: int, size: int, value: int) -> Action | None:
        """RESET for the command that pulses the reset line; all else is ignored."""
        return Action.RESET if value & 0xFF == KEYBOARD_RESET else None
