"""What a command in the lab shares with the process that runs it: its terminal and signals."""

from __future__ import annotations

import contextlib
import os
import signal
import termios
import threading
import tty
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from minivmm.lab.session import Session

FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
"""Signals meant for the command; in raw mode the terminal's keys reach it as bytes instead."""


def terminals(fds: Sequence[int]) -> list[int]:
    """Which of the command's 0, 1, 2 are to be a terminal, when it gets `fds` for them.

    None, unless its input is one and some of its output too: only then can anybody use it.
    """
    found = [number for number, fd in enumerate(fds) if os.isatty(fd)]
    return found if 0 in found and len(found) > 1 else []


def window_size(fd: int) -> tuple[int, int]:
    """Rows and columns of the terminal `fd`; 24 x 80 if it has none."""
    try:
        size = os.get_terminal_size(fd)
    except OSError:
        return 24, 80
    return size.lines, size.columns


@contextlib.contextmanager
def raw_mode(fd: int) -> Iterator[None]:
    """Every key goes through terminal `fd` untouched; restored whatever happens."""
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def forwarded_signals(
    session: Session, terminal: int | None, translate: Callable[[int], int]
) -> Iterator[None]:
    """Signals, and size changes of `terminal`, go to the session (from the main thread only).

    `translate` gets the number of a signal that came, and returns the one to send.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def forward(number: int, _frame: FrameType | None) -> None:
        session.send_signal(translate(number))

    def resize(_number: int, _frame: FrameType | None) -> None:
        if terminal is not None:
            session.resize(*window_size(terminal))

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    before[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, resize)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
