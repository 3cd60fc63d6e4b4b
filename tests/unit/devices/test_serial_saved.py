"""The board's small devices: what they were at is gone on with in another process."""

from __future__ import annotations

import pytest

from minivmm.devices.power import PowerPorts
from minivmm.devices.saved import POWER, SERIAL
from minivmm.devices.serial import BACKLOG_SIZE, Serial
from minivmm.errors import BadState
from minivmm.spec.serial import FIFO_SIZE, Fcr, Ier, Lsr, Mcr, Reg


class Line:
    """A pin that remembers."""

    def __init__(self) -> None:
        self.levels: list[bool] = []

    def set(self, level: bool) -> None:
        self.levels.append(level)


def make() -> tuple[Serial, Line]:
    line = Line()
    return Serial(line, lambda data: None), line


@pytest.fixture
def busy() -> Serial:
    """A UART with its interrupts on, and more input than its FIFO holds, a break among it."""
    serial, _ = make()
    serial.write(Reg.IIR_FCR, 1, Fcr.ENABLE)
    serial.write(Reg.MCR, 1, Mcr.OUT2 | Mcr.RTS)
    serial.write(Reg.IER, 1, Ier.RECEIVED | Ier.LINE_STATUS)
    serial.write(Reg.SCR, 1, 0x5A)
    serial.receive(b"ab")
    serial.receive_break()
    serial.receive(bytes(range(100)))
    return serial


def test_input_is_read_on_in_its_order(busy: Serial) -> None:
    assert busy.read(Reg.DATA, 1) == ord("a")
    other, line = make()

    other.load_state(busy.save_state())

    assert line.levels == [True]
    assert other.inspect() == busy.inspect()
    for _ in range(FIFO_SIZE + 90):
        assert other.read(Reg.LSR, 1) == busy.read(Reg.LSR, 1)
        assert other.read(Reg.DATA, 1) == busy.read(Reg.DATA, 1)
    assert other.read(Reg.SCR, 1) == 0x5A
    assert not other.read(Reg.LSR, 1) & Lsr.DATA_READY
    assert line.levels == [True, False]


def test_a_loaded_uart_saves_the_same(busy: Serial) -> None:
    other, line = make()
    state = busy.save_state()

    other.load_state(state)
    other.load_state(state)

    assert other.save_state() == state
    assert line.levels == [True]


def test_an_interrupt_that_was_not_there_is_not_made_up() -> None:
    quiet, _ = make()
    other, line = make()

    other.load_state(quiet.save_state())

    assert line.levels == []


def test_a_full_backlog_can_be_taken_over(busy: Serial) -> None:
    busy.receive(bytes(2 * BACKLOG_SIZE))
    for _ in range(3):
        busy.receive_break()
    other, _ = make()

    other.load_state(busy.save_state())

    assert other.inspect() == busy.inspect()
    assert other.receive(b"more") == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ier", 0xF0),
        ("mcr", 0x80),
        ("modem_deltas", 0x10),
        ("fcr", 0xC0),
        ("fifo", b"\0"),
        ("fifo", bytes(2 * FIFO_SIZE + 2)),
        ("fifo", b"\x01\x01"),
        ("backlog", b"\x00\x02"),
        ("backlog", bytes(4 * BACKLOG_SIZE + 2)),
    ],
)
def test_what_no_driver_can_bring_about_is_refused(busy: Serial, field: str, value: object) -> None:
    state = SERIAL.parse(busy.save_state())
    state[field] = value
    other, line = make()
    before = other.save_state()

    with pytest.raises(BadState, match=f"saved state of serial: {field} "):
        other.load_state(SERIAL.build(state))

    assert (other.save_state(), line.levels) == (before, [])


def test_flipped_bits_of_a_uart_are_refused_or_are_a_state(busy: Serial) -> None:
    whole = busy.save_state()
    for at in range(8 * len(whole)):
        data = bytearray(whole)
        data[at // 8] ^= 1 << at % 8
        serial, _ = make()
        try:
            serial.load_state(bytes(data))
        except BadState:
            continue
        for offset in range(8):
            assert 0 <= serial.read(offset, 1) <= 0xFF


def test_a_press_of_the_power_button_waits_there() -> None:
    power, line = PowerPorts(Line()), Line()
    power.press_button()
    other = PowerPorts(line)

    other.load_state(power.save_state())

    assert line.levels == []
    assert other.inspect() == {"power-button-pending": True}
    assert other.save_state() == POWER.build({"pressed": True})
    for data in (b"", b"\1\1"):
        with pytest.raises(BadState, match="saved state of power: length"):
            other.load_state(data)
