"""How a machine ended, in our words and in QMP's."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """How a machine ended: a RunState name and one line that says why."""

    state: str
    reason: str

    @property
    def died(self) -> bool:
        """True if the guest (or KVM under it) failed, false for an orderly end."""
        return self.state != "shutdown"

    @property
    def cause(self) -> str:
        """QMP's ShutdownCause for it."""
        if self.state == "guest-panicked":
            return "guest-panic"
        if self.reason == "guest powered off":
            return "guest-shutdown"
        if self.reason == "host asked to quit":
            return "host-qmp-quit"
        return "host-error"
