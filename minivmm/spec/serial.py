"""Registers and bits of the 16550A UART (National Semiconductor's PC16550D data sheet).

Offsets are from the base port; every register is one byte wide. Bits are IntEnums, not IntFlags:
their arithmetic is that of plain ints, and these registers are on the path of every console byte.
"""

from __future__ import annotations

from enum import IntEnum

FIFO_SIZE = 16
"""Bytes in the receive FIFO (8.4 of the data sheet)."""

TRIGGER_LEVELS = (1, 4, 8, 14)
"""Bytes that raise a receive interrupt, by FCR bits 7:6."""


class Reg(IntEnum):
    """Port offsets with LCR.DLAB clear; DLAB replaces the first two by the divisor latch."""

    DATA = 0  # read: receive buffer, write: transmit holding; DLAB: divisor low
    IER = 1  # interrupt enable; DLAB: divisor high
    IIR_FCR = 2  # read: interrupt identification, write: FIFO control
    LCR = 3
    MCR = 4
    LSR = 5
    MSR = 6
    SCR = 7  # scratch


class Ier(IntEnum):
    """Interrupt enable; the upper four bits always read 0 on a 16550A."""

    RECEIVED = 0x01
    THR_EMPTY = 0x02
    LINE_STATUS = 0x04
    MODEM_STATUS = 0x08
    ALL = 0x0F


class Iir(IntEnum):
    """Interrupt identification, bits 3:0, highest priority first; NONE has bit 0 set."""

    LINE_STATUS = 0x06
    RECEIVED = 0x04
    TIMEOUT = 0x0C  # data waits below the trigger level
    THR_EMPTY = 0x02
    MODEM_STATUS = 0x00
    NONE = 0x01


IIR_FIFOS_ENABLED = 0xC0


class Fcr(IntEnum):
    """FIFO control (write only)."""

    ENABLE = 0x01
    CLEAR_RECEIVE = 0x02
    CLEAR_TRANSMIT = 0x04


FCR_TRIGGER_SHIFT = 6

LCR_DLAB = 0x80
"""Divisor latch access bit."""


class Mcr(IntEnum):
    """Modem control. OUT2 gates the interrupt pin on a PC."""

    DTR = 0x01
    RTS = 0x02
    OUT1 = 0x04
    OUT2 = 0x08
    LOOP = 0x10
    ALL = 0x1F


class Lsr(IntEnum):
    """Line status."""

    DATA_READY = 0x01
    OVERRUN = 0x02
    BREAK = 0x10
    THR_EMPTY = 0x20
    TRANSMITTER_EMPTY = 0x40


class Msr(IntEnum):
    """Modem status: lines in bits 7:4, what changed since the last read in bits 3:0."""

    DELTA_CTS = 0x01
    DELTA_DSR = 0x02
    RING_ENDED = 0x04
    DELTA_DCD = 0x08
    CTS = 0x10
    DSR = 0x20
    RING = 0x40
    DCD = 0x80
