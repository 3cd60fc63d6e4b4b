"""Rules: which requests, configuration reads or interrupts they are about, and how often."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Self

from minivmm.devices.virtio_mem.ledger import asked_for
from minivmm.devices.virtio_mem.messages import Request
from minivmm.devices.virtio_mem.mischief.turn import Action, Turn
from minivmm.errors import UsageError
from minivmm.options import unknown
from minivmm.spec.virtio_mem import RequestType


@dataclass(frozen=True, kw_only=True)
class When:
    """Of what a rule is about: from the `nth` on (1 is the first), at most `times` (None: all).

    With a `probability`, each of those with that chance; the same ones for the same `seed`.
    """

    nth: int = 1
    times: int | None = None
    probability: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.nth < 1:
            raise UsageError(f"nth {self.nth} is out of range: the first is 1")
        if self.times is not None and self.times < 1:
            raise UsageError(f"times {self.times} is out of range: use 1 or more")
        if not 0 < self.probability <= 1:
            raise UsageError(f"probability {self.probability:g} is not above 0 and at most 1")

    def __str__(self) -> str:
        parts = [] if self.nth == 1 else [f"from number {self.nth}"]
        parts += [] if self.times is None else [f"{self.times} times" if self.times > 1 else "once"]
        if self.probability < 1:
            parts.append(f"with probability {self.probability:g}, seed {self.seed}")
        return ", ".join(parts)


class Rule:
    """`about` says to people what it is about. Counts what came, and how often it acted."""

    def __init__(self, about: str, when: When) -> None:
        self.about = about
        self.when = when
        self.seen = 0
        """How many came that it is about."""
        self.fired = 0
        """How often it acted."""
        self.where = ""
        """FILE:LINE that it was read from."""
        self._chance = Random(when.seed)

    @property
    def doing(self) -> str:
        """What it does, for people."""
        return ""

    def __str__(self) -> str:
        when = str(self.when)
        return f"{self.about}{', ' if when else ''}{when}: {self.doing or 'nothing'}"

    def complaint(self) -> str:
        """What to say of a rule that never acted: which, and what came instead."""
        came = f"only {self.seen} came" if self.seen else "nothing of that came"
        where = f"{self.where}: " if self.where else ""
        return f"{where}the rule never acted: {self}: {came}"

    def inspect(self) -> dict[str, object]:
        """What it is, and its counts."""
        return {"rule": str(self), "seen": self.seen, "fired": self.fired}

    def is_due(self) -> bool:
        """One more came that the rule is about: is it to act? Counts."""
        self.seen += 1
        if self.seen < self.when.nth:
            return False
        if self.when.times is not None and self.fired >= self.when.times:
            return False
        if self.when.probability < 1 and self._chance.random() >= self.when.probability:
            return False
        self.fired += 1
        return True


class RequestRule(Rule):
    """About requests of `kind` (None: of any) that touch [gpa[0], gpa[1]) (None: anywhere).

    Raises UsageError for a `kind` that there is not.
    """

    def __init__(
        self, kind: str | None, gpa: tuple[int, int] | None, when: When, block_size: int
    ) -> None:
        names = [member.name for member in RequestType]
        if kind is not None and kind.upper() not in names:
            raise UsageError(unknown("request", kind, names))
        if gpa is not None and gpa[0] >= gpa[1]:
            raise UsageError(f"gpa {gpa[0]:#x} to {gpa[1]:#x} is empty: give start and end")
        place = "" if gpa is None else f" in {gpa[0]:#x}-{gpa[1] - 1:#x}"
        super().__init__(f"{'any request' if kind is None else kind.upper()}{place}", when)
        self._kind = None if kind is None else RequestType[kind.upper()]
        self._gpa = gpa
        self._block_size = block_size
        self.actions: list[Action] = []

    @property
    def doing(self) -> str:
        """Its actions."""
        return ", ".join(action.text for action in self.actions)

    def do(self, *actions: Action) -> Self:
        """Do these as well, in this order."""
        self.actions += actions
        return self

    def applies(self, request: Request) -> bool:
        """Is the rule about `request`?"""
        if self._kind is not None and request.type != self._kind:
            return False
        if self._gpa is None:
            return True
        if request.type in (RequestType.UNPLUG_ALL,):
            return False
        end = request.addr + request.nb_blocks * self._block_size
        return request.addr < self._gpa[1] and self._gpa[0] < end

    def act(self, turn: Turn) -> None:
        """Have it done, and told in the trace."""
        for action in self.actions:
            action.apply(turn)
        asked = asked_for(turn.request, self._block_size)
        turn.device.signals.trace("mischief", **asked, what=self.doing)
