"""The UART as Linux's 8250 driver uses it, and as a person who pastes into it expects."""

from __future__ import annotations

import pytest

from minivmm.devices.serial import BACKLOG_SIZE, POLLS_OF_A_READER, Serial
from minivmm.spec.serial import LCR_DLAB, Fcr, Ier, Iir, Lsr, Mcr, Msr, Reg

FIFOS = 0xC0


class Line:
    """An interrupt pin that counts its changes."""

    def __init__(self) -> None:
        self.level = False
        self.changes = 0

    def set(self, level: bool) -> None:
        self.level = level
        self.changes += 1


class Uart:
    """A Serial with named single-byte accesses."""

    def __init__(self) -> None:
        self.line = Line()
        self.sent = bytearray()
        self.device = Serial(self.line, self.sent.extend)

    def read(self, register: Reg) -> int:
        return self.device.read(register, 1)

    def write(self, register: Reg, value: int) -> None:
        self.device.write(register, 1, value)

    def listen(self, *, trigger: int = 0) -> None:
        """What Linux's startup leaves behind: FIFOs, receive interrupts, OUT2."""
        self.write(Reg.IIR_FCR, Fcr.ENABLE | trigger << 6)
        self.write(Reg.MCR, Mcr.DTR | Mcr.RTS | Mcr.OUT2)
        self.write(Reg.IER, Ier.RECEIVED | Ier.LINE_STATUS)

    def read_all(self) -> bytes:
        """Read as Linux's interrupt handler does: while data is ready."""
        got = bytearray()
        while self.read(Reg.LSR) & Lsr.DATA_READY:
            got.append(self.read(Reg.DATA))
        return bytes(got)


@pytest.fixture
def uart() -> Uart:
    return Uart()


# -- autoconfig (drivers/tty/serial/8250/8250_port.c) ---------------------------------------------


def test_only_four_interrupt_enable_bits_exist(uart: Uart) -> None:
    uart.write(Reg.IER, 0xFF)

    assert uart.read(Reg.IER) == 0x0F


def test_loopback_returns_modem_outputs_as_inputs(uart: Uart) -> None:
    uart.write(Reg.MCR, Mcr.LOOP | Mcr.OUT2 | Mcr.RTS)

    assert uart.read(Reg.MSR) & 0xF0 == Msr.DCD | Msr.CTS


def test_fifo_enable_shows_in_interrupt_identification(uart: Uart) -> None:
    before = uart.read(Reg.IIR_FCR)
    uart.write(Reg.IIR_FCR, Fcr.ENABLE)

    assert (before, uart.read(Reg.IIR_FCR)) == (Iir.NONE, FIFOS | Iir.NONE)


def test_fifo_bits_survive_any_line_control(uart: Uart) -> None:
    uart.write(Reg.IIR_FCR, Fcr.ENABLE)

    for line_control in (0x80, 0xBF, 0xE0):
        uart.write(Reg.LCR, line_control)
        assert uart.read(Reg.IIR_FCR) >> 6 == 3


def test_64_byte_fifo_is_not_claimed(uart: Uart) -> None:
    uart.write(Reg.LCR, LCR_DLAB)
    uart.write(Reg.IIR_FCR, Fcr.ENABLE | 0x20)

    assert uart.read(Reg.IIR_FCR) >> 5 == 6


def test_divisor_latch_hides_data_and_interrupt_enable(uart: Uart) -> None:
    uart.write(Reg.IER, Ier.RECEIVED)
    uart.write(Reg.LCR, LCR_DLAB)
    uart.write(Reg.DATA, 0x01)
    uart.write(Reg.IER, 0x02)

    assert (uart.read(Reg.DATA), uart.read(Reg.IER)) == (0x01, 0x02)
    uart.write(Reg.LCR, 0x03)
    assert uart.read(Reg.IER) == Ier.RECEIVED
    assert uart.sent == b""


def test_loopback_fifo_holds_16_bytes(uart: Uart) -> None:
    uart.write(Reg.IIR_FCR, Fcr.ENABLE)
    uart.write(Reg.MCR, Mcr.LOOP)
    for value in range(256):
        uart.write(Reg.DATA, value)

    overrun = uart.read(Reg.LSR) & Lsr.OVERRUN

    assert uart.read_all() == bytes(range(16))
    assert overrun
    assert uart.sent == b""


def test_scratch_register_keeps_its_value(uart: Uart) -> None:
    uart.write(Reg.SCR, 0xA5)

    assert uart.read(Reg.SCR) == 0xA5


# -- transmitter ----------------------------------------------------------------------------------


def test_transmitter_is_always_empty(uart: Uart) -> None:
    for byte in b"hello":
        assert uart.read(Reg.LSR) & 0x60 == 0x60
        uart.write(Reg.DATA, byte)

    assert uart.sent == b"hello"


def test_enabling_the_transmit_interrupt_raises_it_every_time(uart: Uart) -> None:
    uart.write(Reg.MCR, Mcr.OUT2)
    seen = []
    for _ in range(2):
        uart.write(Reg.IER, Ier.THR_EMPTY)
        seen.append((uart.line.level, uart.read(Reg.IIR_FCR)))
        uart.write(Reg.IER, 0)

    assert seen == [(True, Iir.THR_EMPTY), (True, Iir.THR_EMPTY)]


def test_reading_identification_clears_the_transmit_interrupt(uart: Uart) -> None:
    uart.write(Reg.MCR, Mcr.OUT2)
    uart.write(Reg.IER, Ier.THR_EMPTY)

    first, second = uart.read(Reg.IIR_FCR), uart.read(Reg.IIR_FCR)

    assert (first, second) == (Iir.THR_EMPTY, Iir.NONE)
    assert not uart.line.level


def test_writing_data_raises_the_transmit_interrupt_again(uart: Uart) -> None:
    uart.write(Reg.MCR, Mcr.OUT2)
    uart.write(Reg.IER, Ier.THR_EMPTY)
    uart.read(Reg.IIR_FCR)

    for byte in b"0123456789abcdef":
        uart.write(Reg.DATA, byte)

    assert uart.line.level
    assert uart.read(Reg.IIR_FCR) == Iir.THR_EMPTY
    assert uart.line.changes == 4, "the pin moved per interrupt, not per byte"


# -- receiver -------------------------------------------------------------------------------------


def test_received_byte_interrupts_and_reading_it_ends_the_interrupt(uart: Uart) -> None:
    uart.listen()

    uart.device.receive(b"x")

    assert uart.line.level
    assert uart.read(Reg.IIR_FCR) == FIFOS | Iir.RECEIVED
    assert uart.read(Reg.DATA) == ord("x")
    assert not uart.line.level


def test_data_below_the_trigger_level_is_a_timeout(uart: Uart) -> None:
    uart.listen(trigger=2)

    uart.device.receive(b"1234567")
    below = uart.read(Reg.IIR_FCR)
    uart.device.receive(b"8")

    assert (below, uart.read(Reg.IIR_FCR)) == (FIFOS | Iir.TIMEOUT, FIFOS | Iir.RECEIVED)


def test_line_status_beats_received_beats_transmit_beats_modem(uart: Uart) -> None:
    uart.write(Reg.MCR, Mcr.LOOP | Mcr.OUT2)
    uart.write(Reg.IER, Ier.ALL)
    uart.write(Reg.DATA, 1)
    uart.write(Reg.DATA, 2)  # overruns: FIFOs are off

    causes = [uart.read(Reg.IIR_FCR)]
    uart.read(Reg.LSR)
    causes.append(uart.read(Reg.IIR_FCR))
    uart.read(Reg.DATA)
    causes += [uart.read(Reg.IIR_FCR), uart.read(Reg.IIR_FCR)]
    uart.read(Reg.MSR)
    causes.append(uart.read(Reg.IIR_FCR))

    assert causes == [
        Iir.LINE_STATUS,
        Iir.RECEIVED,
        Iir.THR_EMPTY,
        Iir.MODEM_STATUS,
        Iir.NONE,
    ]


def test_interrupt_pin_is_gated_by_out2(uart: Uart) -> None:
    uart.write(Reg.IER, Ier.RECEIVED)
    uart.device.receive(b"x")
    gated = uart.line.level

    uart.write(Reg.MCR, Mcr.OUT2)

    assert (gated, uart.line.level) == (False, True)


def test_pasted_text_is_delivered_whole_and_in_order(uart: Uart) -> None:
    text = bytes(range(256)) * 40
    uart.listen(trigger=2)

    taken = uart.device.receive(text)

    assert taken == len(text)
    assert uart.read_all() == text
    assert not uart.line.level


def test_input_that_came_before_the_driver_survives_its_startup(uart: Uart) -> None:
    uart.device.receive(b"early")

    uart.write(Reg.IIR_FCR, Fcr.ENABLE)
    uart.write(Reg.IIR_FCR, Fcr.ENABLE | Fcr.CLEAR_RECEIVE | Fcr.CLEAR_TRANSMIT)
    uart.write(Reg.IIR_FCR, 0)
    for register in (Reg.LSR, Reg.DATA, Reg.IIR_FCR, Reg.MSR):
        uart.read(register)
    uart.listen()

    assert uart.read_all() == b"early"


def test_input_beyond_the_backlog_is_refused_and_asked_for_again(uart: Uart) -> None:
    asked = []
    uart.device.on_space = lambda: asked.append(True)

    taken = uart.device.receive(b"a" * (BACKLOG_SIZE + 1))
    assert (taken, asked) == (BACKLOG_SIZE, [])
    uart.listen()
    rest = uart.read_all()

    assert asked == [True]
    assert rest == b"a" * BACKLOG_SIZE


def test_polling_reader_without_interrupts_gets_input(uart: Uart) -> None:
    uart.device.receive(b"hi")
    got = bytearray()

    for _ in range(4 * POLLS_OF_A_READER):
        if uart.read(Reg.LSR) & Lsr.DATA_READY:
            got.append(uart.read(Reg.DATA))

    assert got == b"hi"


def test_clearing_the_receive_fifo_drops_only_what_it_held(uart: Uart) -> None:
    uart.listen()
    uart.device.receive(bytes(range(20)))

    uart.write(Reg.IIR_FCR, Fcr.ENABLE | Fcr.CLEAR_RECEIVE)

    assert uart.read_all() == bytes(range(16, 20))


def test_reset_restores_registers_and_keeps_unread_input(uart: Uart) -> None:
    uart.listen()
    uart.write(Reg.IER, 0)
    uart.device.receive(b"typed ahead")

    uart.device.reset()

    assert [uart.read(r) for r in (Reg.IER, Reg.IIR_FCR, Reg.LCR, Reg.MCR)] == [0, 1, 0, 0]
    uart.listen()
    assert uart.read_all() == b"typed ahead"


def test_modem_lines_are_connected(uart: Uart) -> None:
    assert uart.read(Reg.MSR) == Msr.CTS | Msr.DSR | Msr.DCD


def test_wide_access_touches_successive_registers(uart: Uart) -> None:
    uart.device.write(Reg.MSR, 2, 0x5A00)

    assert uart.device.read(Reg.LSR, 4) & 0xFF == 0x60
    assert uart.device.read(Reg.SCR, 1) == 0x5A


def test_inspect_tells_how_much_input_waits(uart: Uart) -> None:
    uart.device.receive(b"abc")

    assert uart.device.inspect()["backlog"] == 3


def test_break_is_a_zero_byte_that_line_status_tells_of_once() -> None:
    uart = Uart()
    uart.listen()

    uart.device.receive(b"a")
    uart.device.receive_break()
    uart.device.receive(b"t")

    assert not uart.read(Reg.LSR) & Lsr.BREAK
    assert uart.read(Reg.DATA) == ord("a")
    assert uart.read(Reg.LSR) & Lsr.BREAK
    assert not uart.read(Reg.LSR) & Lsr.BREAK
    assert uart.read(Reg.DATA) == 0
    assert uart.read(Reg.DATA) == ord("t")


def test_break_raises_a_line_status_interrupt() -> None:
    uart = Uart()
    uart.listen()
    uart.write(Reg.IER, Ier.RECEIVED | Ier.LINE_STATUS)

    uart.device.receive_break()

    assert uart.read(Reg.IIR_FCR) & 0x0F == Iir.LINE_STATUS
    uart.read(Reg.LSR)
    assert uart.read(Reg.IIR_FCR) & 0x0F != Iir.LINE_STATUS
