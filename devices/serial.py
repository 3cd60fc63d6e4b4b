"""A 16550A UART: registers, FIFO, loopback and interrupt. Where bytes go is a callback's matter.

The transmitter is infinitely fast: LSR always says that it is empty, so Linux never polls for it.
The receiver takes from a backlog, and only while somebody reads: nothing pasted early is lost.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Collection

from minivmm.irq import IrqLine
from minivmm.saved import Form, build, parse, require
from minivmm.spec.serial import (
    FCR_TRIGGER_SHIFT,
    FIFO_SIZE,
    IIR_FIFOS_ENABLED,
    LCR_DLAB,
    TRIGGER_LEVELS,
    Fcr,
    Ier,
    Iir,
    Lsr,
    Mcr,
    Msr,
    Reg,
)

_FORM = Form("minivmm.devices.saved", "SERIAL")

PORTS = 8
"""I/O ports that the device occupies."""

BACKLOG_SIZE = 64 * 1024
"""Bytes of input kept for a guest that does not read yet; `receive` refuses more."""

POLLS_OF_A_READER = 8
"""Successive LSR reads that mark a driver which polls for input instead of using interrupts.

Linux never reads LSR so often in a row: its waits for the transmitter end with the first read.
"""

_PART = "serial"

_BREAK = 0x100
"""What stands for a break among received bytes; the guest reads it as 0, with LSR's break bit."""

_CONNECTED = Msr.CTS | Msr.DSR | Msr.DCD
_LOOPED = ((Mcr.RTS, Msr.CTS), (Mcr.DTR, Msr.DSR), (Mcr.OUT1, Msr.RING), (Mcr.OUT2, Msr.DCD))


class Serial:
    """One UART. All methods run with the machine's lock held.

    `output` gets every transmitted byte. `on_space` is called when a `receive` that took less than
    it was offered may be repeated.
    """

    def __init__(self, line: IrqLine, output: Callable[[bytes], None]) -> None:
        self._line = line
        self._output = output
        self.on_space: Callable[[], None] = lambda: None
        self._backlog: deque[int] = deque()
        self._level = False
        self._refused = False
        self._power_on()

    def _power_on(self) -> None:
        self._fifo: deque[int] = deque()
        self._ier = 0
        self._fcr = 0
        self._lcr = 0
        self._mcr = 0
        self._scratch = 0
        self._divisor = [1, 0]
        self._overrun = False
        self._thr_pending = False
        self._modem_deltas = 0
        self._polls = 0

    def reset(self) -> None:
        """Registers as after power-on; input that the guest has not seen yet is kept."""
        self._power_on()
        self._update()

    def receive(self, data: bytes) -> int:
        """Take input for the guest; returns how many bytes, from the start of `data`, it took."""
        self._refused = False  # on_space must not be called before this returns
        taken = min(len(data), max(0, BACKLOG_SIZE - len(self._backlog)))
        self._backlog.extend(data[:taken])
        self._fill()
        self._refused = taken < len(data)
        self._update()
        return taken

    def receive_break(self) -> None:
        """A break after the input so far: to Linux, a sysrq letter follows on its console."""
        self._backlog.append(_BREAK)
        self._fill()
        self._update()

    def read(self, offset: int, size: int) -> int:
        """Value of `size` registers from `offset` on, first one in the low byte."""
        value = 0
        for at in range(size):
            value |= self._read_register((offset + at) % PORTS) << 8 * at
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Write `size` registers from `offset` on, low byte first."""
        for at in range(size):
            self._write_register((offset + at) % PORTS, value >> 8 * at & 0xFF)

    def inspect(self) -> dict[str, object]:
        """Registers and how much input waits (bytes)."""
        return {
            "ier": self._ier,
            "fcr": self._fcr,
            "lcr": self._lcr,
            "mcr": self._mcr,
            "fifo": len(self._fifo),
            "backlog": len(self._backlog),
            "interrupt": self._level,
        }

    def save_state(self) -> bytes:
        """Registers, and the input that the guest has not read."""
        return build(
            _FORM,
            ier=self._ier,
            fcr=self._fcr,
            lcr=self._lcr,
            mcr=self._mcr,
            scratch=self._scratch,
            divisor=self._divisor,
            overrun=self._overrun,
            thr_pending=self._thr_pending,
            modem_deltas=self._modem_deltas,
            polls=min(self._polls, POLLS_OF_A_READER),
            fifo=_pack(self._fifo),
            backlog=_pack(self._backlog),
        )

    def load_state(self, data: bytes) -> None:
        """Take such a state over, and drive the pin by it. Raises BadState."""
        state = parse(_PART, _FORM, data)
        fifos_on = bool(state.fcr & Fcr.ENABLE)
        known = fifos_on or not state.fcr
        require(known, _PART, "fcr", f"{state.fcr:#x}", "its FIFOs are off, and so are other bits")
        fifo = _unpack("fifo", state.fifo, FIFO_SIZE if fifos_on else 1)
        backlog = _unpack("backlog", state.backlog, 2 * BACKLOG_SIZE)  # breaks always have room
        for field, most in (("ier", Ier.ALL), ("mcr", Mcr.ALL), ("modem_deltas", 0xF)):
            value = state[field]
            require(not value & ~int(most), _PART, field, f"{value:#x}", "no such bits")
        self._ier, self._fcr, self._lcr, self._mcr = state.ier, state.fcr, state.lcr, state.mcr
        self._scratch, self._divisor = state.scratch, list(state.divisor)
        self._overrun, self._thr_pending = state.overrun, state.thr_pending
        self._modem_deltas, self._polls = state.modem_deltas, state.polls
        self._fifo, self._backlog = deque(fifo), deque(backlog)
        self._update()

    # -- registers ---------------------------------------------------------------------------------

    def _read_register(self, offset: int) -> int:
        if offset == Reg.LSR:
            return self._read_lsr()
        self._polls = 0
        if offset <= Reg.IER and self._lcr & LCR_DLAB:
            return self._divisor[offset]
        if offset == Reg.DATA:
            return self._read_data()
        if offset == Reg.IER:
            return self._ier
        if offset == Reg.IIR_FCR:
            return self._read_iir()
        if offset == Reg.LCR:
            return self._lcr
        if offset == Reg.MCR:
            return self._mcr
        if offset == Reg.MSR:
            return self._read_msr()
        return self._scratch

    def _write_register(self, offset: int, value: int) -> None:
        self._polls = 0
        if offset <= Reg.IER and self._lcr & LCR_DLAB:
            self._divisor[offset] = value
        elif offset == Reg.DATA:
            self._write_data(value)
        elif offset == Reg.IER:
            self._write_ier(value)
        elif offset == Reg.IIR_FCR:
            self._write_fcr(value)
        elif offset == Reg.LCR:
            self._lcr = value
        elif offset == Reg.MCR:
            self._write_mcr(value)
        elif offset == Reg.SCR:
            self._scratch = value

    def _read_data(self) -> int:
        value = self._fifo.popleft() if self._fifo else 0
        self._fill()
        self._update()
        return value & 0xFF

    def _write_data(self, value: int) -> None:
        if self._mcr & Mcr.LOOP:
            if len(self._fifo) < self._fifo_size:
                self._fifo.append(value)
            else:
                self._overrun = True
        else:
            self._output(bytes((value,)))
        self._thr_pending = True  # sent at once: the holding register is empty again
        self._update()

    def _write_ier(self, value: int) -> None:
        enabled = value & ~self._ier
        self._ier = value & Ier.ALL
        # Enabling this interrupt while the register is empty raises it (again), which is what
        # Linux's startup test for broken UARTs looks at.
        if enabled & Ier.THR_EMPTY:
            self._thr_pending = True
        self._fill()
        self._update()

    def _read_iir(self) -> int:
        cause = self._cause()
        if cause == Iir.THR_EMPTY:
            self._thr_pending = False
            self._update()
        return cause | (IIR_FIFOS_ENABLED if self._fcr & Fcr.ENABLE else 0)

    def _write_fcr(self, value: int) -> None:
        if value & Fcr.CLEAR_RECEIVE or (value ^ self._fcr) & Fcr.ENABLE:
            self._fifo.clear()
        # Without ENABLE the other bits are not programmed (data sheet 8.4).
        self._fcr = value if value & Fcr.ENABLE else 0
        self._fill()
        self._update()

    def _write_mcr(self, value: int) -> None:
        before = self._modem_lines()
        self._mcr = value & Mcr.ALL
        after = self._modem_lines()
        # Lines sit four bits above their deltas; the ring bit only tells of its trailing edge.
        self._modem_deltas |= ((before ^ after) & ~Msr.RING | before & ~after & Msr.RING) >> 4
        self._fill()
        self._update()

    def _read_lsr(self) -> int:
        self._polls += 1
        if self._polls >= POLLS_OF_A_READER:
            self._fill()
        value = int(Lsr.THR_EMPTY | Lsr.TRANSMITTER_EMPTY)
        if self._fifo:
            value |= Lsr.DATA_READY
        if self._break_arrived():
            value |= Lsr.BREAK
            self._fifo[0] = 0
            self._update()
        if self._overrun:
            value |= Lsr.OVERRUN
            self._overrun = False
            self._update()
        return value

    def _read_msr(self) -> int:
        value = self._modem_lines() | self._modem_deltas
        self._modem_deltas = 0
        self._update()
        return value

    # -- receiver, modem lines, interrupt ----------------------------------------------------------

    @property
    def _fifo_size(self) -> int:
        return FIFO_SIZE if self._fcr & Fcr.ENABLE else 1

    def _fill(self) -> None:
        """Move backlog into the FIFO if somebody reads it.

        A driver that opens the port clears the FIFO and throws a byte or two away before it
        enables receive interrupts; what came early must still be in the backlog then.
        """
        listening = self._ier & Ier.RECEIVED or self._polls >= POLLS_OF_A_READER
        if not listening or self._mcr & Mcr.LOOP:
            return
        room = self._fifo_size - len(self._fifo)
        for _ in range(min(room, len(self._backlog))):
            self._fifo.append(self._backlog.popleft())
        # Ask for more in big pieces, not byte by byte.
        if self._refused and len(self._backlog) <= BACKLOG_SIZE // 2:
            self._refused = False
            self.on_space()

    def _break_arrived(self) -> bool:
        """Is the next byte a break that LSR has not told of?"""
        return bool(self._fifo) and self._fifo[0] == _BREAK

    def _modem_lines(self) -> int:
        if not self._mcr & Mcr.LOOP:
            return _CONNECTED
        return sum(line for output, line in _LOOPED if self._mcr & output)

    def _cause(self) -> Iir:
        """The pending interrupt of highest priority that is enabled."""
        if self._ier & Ier.LINE_STATUS and (self._overrun or self._break_arrived()):
            return Iir.LINE_STATUS
        if self._ier & Ier.RECEIVED and self._fifo:
            trigger = TRIGGER_LEVELS[self._fcr >> FCR_TRIGGER_SHIFT]
            full = not self._fcr & Fcr.ENABLE or len(self._fifo) >= trigger
            # No real time passes in this FIFO: what is below the trigger has timed out already.
            return Iir.RECEIVED if full else Iir.TIMEOUT
        if self._ier & Ier.THR_EMPTY and self._thr_pending:
            return Iir.THR_EMPTY
        if self._ier & Ier.MODEM_STATUS and self._modem_deltas:
            return Iir.MODEM_STATUS
        return Iir.NONE

    def _update(self) -> None:
        """Drive the interrupt pin, only when it changes: each change is a system call."""
        level = self._cause() != Iir.NONE and bool(self._mcr & Mcr.OUT2)
        if level != self._level:
            self._level = level
            self._line.set(level)


def _pack(items: Collection[int]) -> bytes:
    return struct.pack(f"<{len(items)}H", *items)


def _unpack(field: str, data: bytes, most: int) -> tuple[int, ...]:
    """What _pack made of at most `most` items. Raises BadState."""
    count, rest = divmod(len(data), 2)
    fits = not rest and count <= most
    require(fits, _PART, field, f"{len(data)} bytes", f"at most {most} of 2 are possible")
    items = struct.unpack(f"<{count}H", data)
    odd = [item for item in items if item > _BREAK]
    require(not odd, _PART, field, [f"{item:#x}" for item in odd[:1]], "neither byte nor break")
    return items
