"""Kinds of diagnosis, and the Diagnosis: plain data. How one is reached is diagnosis.py's."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Why a device has, or has not, what was asked for."""

    DONE = "done"
    """As much is plugged as was asked for."""
    WORKING = "working"
    """On the way, or too early to tell."""
    PAUSED = "paused"
    """The vCPUs do not run."""
    NO_DRIVER = "no-driver"
    """No driver drives the device."""
    FEATURE_REFUSED = "feature-refused"
    """The driver lacks a feature that the device insists on."""
    NOT_ADDRESSABLE = "not-addressable"
    """The region, or part of it, is beyond what the guest can address."""
    NO_WHOLE_BLOCK = "no-whole-block"
    """The usable region has no more whole memory blocks of the guest."""
    REMAINDER = "remainder"
    """What is left is less than the guest's unit."""
    NOT_ONLINED = "not-onlined"
    """The guest adds memory but does not online it, and stops at about 1 GiB."""
    UNMOVABLE = "unmovable"
    """The guest cannot free what it should unplug."""
    RETRY_WAIT = "retry-wait"
    """The driver was told BUSY and waits up to 300 s before it tries again."""
    HOST_SHORTAGE = "host-shortage"
    """The driver was told BUSY because the host is out of memory."""
    NACK_LOOP = "nack-loop"
    """The driver keeps asking for what it was refused."""
    BROKEN = "broken"
    """Device or driver has given the other one up."""
    STALLED = "stalled"
    """The driver is silent, for a reason that cannot be seen from here."""


@dataclass(frozen=True)
class Diagnosis:
    """What is the matter, how that is known, and what helps; lines of text for people."""

    kind: Kind
    summary: str
    """One line without a full stop."""
    evidence: tuple[str, ...] = ()
    remedy: str = ""
    """What to do; empty if there is nothing to do."""
    certain: bool = True
    """False: the most likely of several explanations."""

    @property
    def headline(self) -> str:
        """Kind and summary, in one line."""
        return f"{'' if self.certain else 'probably '}{self.kind}: {self.summary}"

    def to_json(self) -> dict[str, object]:
        """The same under JSON names."""
        return {
            "kind": str(self.kind),
            "certain": self.certain,
            "summary": self.summary,
            "evidence": list(self.evidence),
            "remedy": self.remedy,
        }
