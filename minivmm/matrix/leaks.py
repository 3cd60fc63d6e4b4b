"""What work leaves behind in a VMM's process, told from what is only made at its first use."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import replace

from minivmm.matrix.guest import HostUse
from minivmm.matrix.results import Leaks

LINGER = 3.0
"""Seconds that files and threads may take to go: a joined thread is still on its way out."""


def watch(look: Callable[[], HostUse], work: Callable[[], bool]) -> Leaks:
    """Do `work` and compare what `look` sees before and after.

    If files or threads are more then, the work is done once more, provided that it returned True:
    an interrupt's eventfd, say, is made when it first fires, and is no leak if that adds nothing.
    """
    before = look()
    again = work()
    found = _left(before, look)
    if again and (found.fds > 0 or found.threads > 0):
        before = look()
        work()
        second = _left(before, look)
        found = replace(found, fds=second.fds, threads=second.threads)
    return found


def _left(before: HostUse, look: Callable[[], HostUse]) -> Leaks:
    end = time.monotonic() + LINGER
    gc.collect()
    while True:
        after = look()
        fds, threads = after.fds - before.fds, after.threads - before.threads
        if max(fds, threads) <= 0 or time.monotonic() > end:
            return Leaks(fds, threads, after.resident - before.resident, after.held)
        time.sleep(0.1)
