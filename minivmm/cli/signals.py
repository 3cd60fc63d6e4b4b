"""Signals that ask us to end, held back where they would leave half of something behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Signals after which we clean up and go. SIGQUIT too: the terminal may be in raw mode."""


def ignore_in_this_thread() -> None:
    """Leave ENDING signals to the main thread: for threads that may outlive what handles them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)


class HeldSignals:
    """While inside, ENDING signals wait, and come at the end to the handlers found at the start.

        with HeldSignals() as signals:
            made = make()
            try:
                with signals.allowed():
                    work_for_long(made)
            finally:
                made.remove()

    So nothing can interrupt between `make` and `try`, or in `remove`. Threads started while
    signals are allowed do not hold them back either. For the main thread.
    """

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in ENDING}
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Inside, signals come as they do elsewhere."""
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
