"""Reset, power off and the power button, as spec/platform.py and ACPI describe them."""

from __future__ import annotations

import pytest

from minivmm.bus import Action, Bus
from minivmm.devices.power import PORTS, KeyboardPort, PowerPorts
from minivmm.spec.platform import (
    KEYBOARD_PORT,
    POWER_EVENT_PORT,
    POWER_PORT,
    RESET_PORT,
    RESET_VALUE,
    SLEEP_CONTROL_PORT,
    SLEEP_STATUS_PORT,
)


class Line:
    def __init__(self) -> None:
        self.levels: list[bool] = []

    def set(self, level: bool) -> None:
        self.levels.append(level)


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def power(line: Line) -> PowerPorts:
    return PowerPorts(line)


@pytest.fixture
def bus(power: PowerPorts) -> Bus:
    bus = Bus("pio")
    bus.add(POWER_PORT, PORTS, power, name="power")
    bus.add(KEYBOARD_PORT, 1, KeyboardPort(), name="keyboard")
    return bus


def test_reset_register_resets(bus: Bus) -> None:
    assert bus.write(RESET_PORT, 1, RESET_VALUE) is Action.RESET


def test_other_reset_values_do_nothing(bus: Bus) -> None:
    assert bus.write(RESET_PORT, 1, 0x02) is None


def test_linux_entering_s5_powers_off(bus: Bus) -> None:
    assert bus.write(SLEEP_CONTROL_PORT, 1, 0x34) is Action.POWER_OFF


@pytest.mark.parametrize("value", [0x14, 0x20, 0x20 | 3 << 2])
def test_other_sleep_controls_do_nothing(bus: Bus, value: int) -> None:
    assert bus.write(SLEEP_CONTROL_PORT, 1, value) is None


def test_sleep_status_reads_zero_and_ignores_writes(bus: Bus) -> None:
    assert bus.write(SLEEP_STATUS_PORT, 1, 0x80) is None
    assert bus.read(SLEEP_STATUS_PORT, 1) == 0


def test_button_press_is_seen_once_with_one_edge(bus: Bus, power: PowerPorts, line: Line) -> None:
    power.press_button()

    assert line.levels == [True, False]
    assert [bus.read(POWER_EVENT_PORT, 1) for _ in range(2)] == [1, 0]


def test_reset_forgets_a_press(bus: Bus, power: PowerPorts) -> None:
    power.press_button()

    power.reset()

    assert bus.read(POWER_EVENT_PORT, 1) == 0


def test_keyboard_controller_pulse_resets(bus: Bus) -> None:
    assert bus.write(KEYBOARD_PORT, 1, 0xFE) is Action.RESET
    assert bus.write(KEYBOARD_PORT, 1, 0x20) is None


def test_keyboard_controller_is_never_busy(bus: Bus) -> None:
    assert bus.read(KEYBOARD_PORT, 1) & 0x02 == 0
