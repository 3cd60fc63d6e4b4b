"""How a debugger stops a machine and lets it run: the machine's state, and QMP's events about it.

While the debugger has it stopped, the machine's state is "debug", as QEMU calls it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from minivmm.errors import Refused
from minivmm.outcome import Outcome


class Driven(Protocol):
    """The machine, as far as it concerns us."""

    state: str
    outcome: Outcome | None


class Reins:
    """One machine's. All methods want the lock held.

    `halt` parks all vCPUs, then calls what it is given on the loop; `go_on` lets those run again
    that may (`Reins.exempt` if the state is "debug").
    """

    def __init__(
        self,
        machine: Driven,
        emit: Callable[[str], None],
        halt: Callable[[Callable[[], None]], None],
        go_on: Callable[[], None],
    ) -> None:
        self.exempt: frozenset[int] = frozenset()
        """vCPUs that run although the machine is stopped: they are single-stepped."""
        self._machine = machine
        self._emit = emit
        self._halt = halt
        self._go_on = go_on
        self._before = ""

    def stop(self, then: Callable[[], None]) -> None:
        """Park all vCPUs, then call `then` on the loop."""
        self.exempt = frozenset()
        if self._machine.outcome is None and self._machine.state != "debug":
            self._before, self._machine.state = self._machine.state, "debug"
            if self._before == "running":
                self._emit("STOP")
        self._halt(then)

    def run(self, only: frozenset[int] | None) -> None:
        """Let all vCPUs run, or `only` these, of which nobody else is told."""
        if only is None:
            self._become("running")
        else:
            self.exempt = only
        self._go_on()

    def leave(self, run: bool) -> None:
        """The debugger is gone: run, or be as before it came."""
        self._become("running" if run else self._before)
        self._go_on()

    def refuse(self) -> None:
        """Raises Refused while the debugger has the machine stopped."""
        if self._machine.state == "debug":
            raise Refused("a debugger has stopped the VM: continue or detach there")

    def _become(self, state: str) -> None:
        if self._machine.outcome is None and self._machine.state == "debug":
            self._machine.state = state
            if state == "running":
                self._emit("RESUME")
