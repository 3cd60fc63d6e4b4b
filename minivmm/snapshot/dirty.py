"""DirtyLog: which plugged memory changed since somebody last looked.

What is written is found out in write_log.py; here it is remembered for one who copies memory, be it
into a file or to another machine.
"""

from __future__ import annotations

import threading

from minivmm.errors import Refused
from minivmm.machine import Machine
from minivmm.memory.ranges import common, merged
from minivmm.snapshot.ram import plugged
from minivmm.write_log import PAGE

_ENOUGH = 1 << 16
"""Ranges kept apart before neighbours are joined: the guest chooses how many there are."""


class DirtyLog:
    """Begun and ended once; any number of them may be at work at a time. Call with the lock held.

    Costs nothing before `begin` and after `end`. In between KVM maps guest memory in small pages,
    and the first write to each page after a `collect` exits to the kernel.
    """

    def __init__(self) -> None:
        self._machine: Machine | None = None
        self._pages: set[tuple[int, int]] = set()
        self._guard = threading.Lock()

    def begin(self, machine: Machine) -> None:
        """Remember what is written from now on. Raises HostError if KVM cannot keep a log."""
        machine.write_log.add(self)
        self._machine = machine

    def collect(self) -> list[tuple[int, int]]:
        """(gpa, size in bytes) of what may have changed since the last call, or since `begin`.

        Whole pages, ascending, not adjoining, and only what is plugged now; what was plugged
        meanwhile is in it whole, for its content before is not what it was. vCPUs may run: what
        they write from now on is in the next answer. Costs by what is plugged, not by the size of
        regions. Raises HostError; Refused after `end`.
        """
        if self._machine is None:
            raise Refused("no log of written memory is kept: begin one")
        self._machine.write_log.harvest()
        with self._guard:
            pages, self._pages = self._pages, set()
        changed = [(first * PAGE, count * PAGE) for first, count in merged(pages)]
        pieces = plugged(self._machine.board.memory)
        return common(changed, [(piece.gpa, piece.size) for piece in pieces])

    def end(self) -> None:
        """Forget everything. Harmless when repeated."""
        if self._machine is not None:
            self._machine.write_log.remove(self)
            self._machine = None
            self._pages.clear()

    # -- Sink ------------------------------------------------------------------------------------

    def wrote(self, gpa: int, length: int) -> None:
        """Remember the pages of these bytes."""
        if not length:
            return
        first = gpa // PAGE
        with self._guard:
            self._pages.add((first, (gpa + length - 1) // PAGE - first + 1))
            if len(self._pages) > _ENOUGH:
                self._pages = set(merged(self._pages))
