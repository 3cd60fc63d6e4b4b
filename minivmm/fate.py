"""How the life of a machine goes on after what befell it: it panicked, is to be reset, or ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from minivmm.bus import Action
from minivmm.console_watch import ConsoleWatch
from minivmm.outcome import Outcome
from minivmm.stats import Stats
from minivmm.trace import Trace


class Mortal(Protocol):
    """The machine, as far as it concerns us."""

    state: str
    outcome: Outcome | None
    trace: Trace
    stats: Stats
    on_end: list[Callable[[Outcome], None]]

    def request_reset(self, *, guest: bool = False) -> None:
        """Everything as at power-on."""


class Fate:
    """One machine's. All methods want the lock held; `park` parks its vCPUs."""

    def __init__(
        self,
        machine: Mortal,
        emit: Callable[[str, dict[str, object]], None],
        park: Callable[[Callable[[], None]], None],
    ) -> None:
        self.watch = ConsoleWatch(self._on_panic, lambda: machine.stats.mark("init"))
        """What the guest says on its console."""
        self._machine = machine
        self._emit = emit
        self._park = park

    def on_action(self, action: Action) -> None:
        """The guest asks for it by a register."""
        self._machine.trace.emit("machine", "action", action=action.value)
        if action is Action.POWER_OFF:
            self.end("shutdown", "guest powered off")
        elif self.watch.panic is not None:
            self._end_panicked(self.watch.panic)
        else:
            self._machine.request_reset(guest=True)

    def on_failure(self, why: str) -> None:
        """The guest cannot go on; if it panicked before, that says more than how it then fell."""
        if self.watch.panic is not None:
            self._end_panicked(self.watch.panic)
        else:
            self.fail(why)

    def fail(self, why: str) -> None:
        """The host cannot go on."""
        self.end("internal-error", why)

    def end(self, state: str, reason: str) -> None:
        """The machine is over, unless it was before."""
        machine = self._machine
        if machine.outcome is not None:
            return
        machine.outcome = outcome = Outcome(state, reason)
        machine.state = state
        machine.trace.emit("machine", "end", outcome=state, reason=reason)
        self._park(lambda: None)
        cause = outcome.cause
        self._emit("SHUTDOWN", {"guest": cause.startswith("guest"), "reason": cause})
        for listener in machine.on_end:
            listener(outcome)

    def _end_panicked(self, panic: str) -> None:
        self.end("guest-panicked", f"guest panicked: {panic}")

    def _on_panic(self) -> None:
        """A panic began on the console; its report goes on until the guest resets (panic=-1)."""
        self._machine.trace.emit("machine", "panic", reason=self.watch.panic)
        self._emit("GUEST_PANICKED", {"action": "poweroff"})
