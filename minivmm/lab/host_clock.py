"""How fast the processor's time stamp counter runs; who needs to be told is machine.py's matter.

QEMU's emulated processor has this very counter. A kernel that measures it against emulated timers
is misled when QEMU has to wait for a processor just then: it takes the smallest of three values
(Linux arch/x86/kernel/tsc.c, pit_hpet_ptimer_calibrate_cpu), and its clock then runs too fast.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import time

MEASURE_SECONDS = 0.05
"""Time that a measurement takes; its error is some microseconds."""
TRIES = 20
"""Readings of both clocks at once, of which the quickest counts."""

# rdtsc; shl rdx, 32; or rax, rdx; ret
_READ_COUNTER = bytes.fromhex("0f31 48c1e220 4809d0 c3")


def counter_khz() -> int | None:
    """Steps of the counter per millisecond; None if this host does not let us read it."""
    if platform.machine() != "x86_64":
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:  # a policy against memory that is writable and executable
        return None
    page.write(_READ_COUNTER)
    # The page stays as long as the array does, which looks at it.
    code = (ctypes.c_char * len(_READ_COUNTER)).from_buffer(page)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(code))
    began, first = _both(read)
    time.sleep(MEASURE_SECONDS)
    ended, last = _both(read)
    return round((last - first) * 1_000_000 / (ended - began))


def _both(read: ctypes._CFunctionType) -> tuple[int, int]:
    """CLOCK_MONOTONIC in ns and the counter, at one moment as nearly as can be."""
    best, at, count = 1 << 63, 0, 0
    for _ in range(TRIES):
        before = time.monotonic_ns()
        counted = int(read())
        took = time.monotonic_ns() - before
        if took < best:
            best, at, count = took, before + took // 2, counted
    return at, count
