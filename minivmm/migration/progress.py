"""What a migration may use, and how far it is: plain data; one thread writes it, others read."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

from minivmm.units import MIB

Status = Literal["none", "setup", "active", "cancelling", "completed", "failed", "cancelled"]
"""Those of QEMU's MigrationStatus that there are here."""

OVER: tuple[Status, ...] = ("none", "completed", "failed", "cancelled")


@dataclass
class Parameters:
    """Names and defaults are QEMU's; may be changed while a migration runs."""

    max_bandwidth: int = 128 * MIB
    """Bytes per second while the guest runs; 0 for no limit."""
    downtime_limit: int = 300
    """Milliseconds that the guest may stand still."""
    compress_level: int = 0
    """zlib's level, 1 to 9; 0 does not compress."""


@dataclass
class Progress:
    """One migration, outgoing or incoming. Sizes are bytes, times seconds of `time.monotonic`."""

    status: Status = "none"
    error: str = ""
    began: float = field(default_factory=time.monotonic)
    ready: float | None = None
    """When both sides had agreed and memory began to move."""
    stopped: float | None = None
    """When the guest was stopped for the end."""
    ended: float | None = None
    total: int = 0
    """All guest memory that there is to move."""
    remaining: int = 0
    """What of it is known to be left."""
    data: int = 0
    """Guest memory that was sent as it is, some of it more than once."""
    zeroes: int = 0
    """Guest memory of which only was said that it is zeroes."""
    sent: int = 0
    """Bytes on the wire."""
    rounds: int = 0
    dirty_rate: float = 0.0
    """Bytes that the guest wrote per second during the last round."""
    speed: float = 0.0
    """Bytes of the wire per second of sending, in the last round."""

    @property
    def over(self) -> bool:
        """Has it come to an end, of whatever kind?"""
        return self.status in OVER

    @property
    def seconds(self) -> float:
        """How long it took, or takes so far."""
        return (self.ended or time.monotonic()) - self.began

    @property
    def expected_downtime(self) -> float | None:
        """Seconds that sending what remains would take; None while that is not known."""
        return self.remaining / self.speed if self.speed else None

    @property
    def downtime(self) -> float | None:
        """Seconds that the guest stood still; None if it did not, or still does."""
        if self.stopped is None or self.ended is None:
            return None
        return self.ended - self.stopped

    def end(self, status: Status, error: str = "") -> None:
        """It is over."""
        self.ended = time.monotonic()
        self.error = error
        self.status = status
