"""Ledger: every answer is entered here: counted, remembered for a diagnosis, traced."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from minivmm.devices.virtio_mem.activity import Activity
from minivmm.devices.virtio_mem.messages import Request
from minivmm.devices.virtio_mem.saved import UNKNOWN, load_counts, save_counts
from minivmm.spec.virtio_mem import BlockState, RequestType, ResponseType
from minivmm.virtio.device import Signals

MOVES = 256
"""Requests remembered that changed blocks; Linux plugs 128 MiB with one."""


# Names of enum members: looked up here, as their property is slow.
_NAMES = {int(kind): kind.name for kind in RequestType}
_ANSWERS = {answer: answer.name for answer in ResponseType}


def asked_for(request: Request, block_size: int) -> dict[str, object]:
    """What `request` asks for, as events tell it: type, gpa, blocks, and their size in bytes."""
    kind, blocks = request.type, request.nb_blocks
    if kind not in _NAMES:
        return {"type": kind}
    if kind == RequestType.UNPLUG_ALL:
        return {"type": _NAMES[kind]}
    return {
        "type": _NAMES[kind],
        "gpa": request.addr,
        "blocks": blocks,
        "size": blocks * block_size,
    }


class Ledger:
    """The answers of one device since it was made."""

    def __init__(self, activity: Activity, block_size: int) -> None:
        self._activity = activity
        self._block_size = block_size
        self._counts: Counter[tuple[str, str]] = Counter()
        self.moves: deque[tuple[float, Request]] = deque(maxlen=MOVES)
        """The last acknowledged requests that changed blocks, and the activity's time of each."""

    def enter(
        self,
        signals: Signals,
        request: Request,
        answer: ResponseType,
        *,
        plugged: int,
        found: BlockState | None = None,
        why: str = "",
    ) -> None:
        """`request` got `answer`, for the reason `why`; now `plugged` bytes are plugged.

        `found` is what the answer to STATE tells.
        """
        asked, answered = _NAMES.get(request.type, UNKNOWN), _ANSWERS[answer]
        self._counts[asked, answered] += 1
        self._activity.answered(request.type, answer, request.nb_blocks, why)
        if answer is ResponseType.ACK and request.type != RequestType.STATE:
            self.moves.append((self._activity.clock(), request))
        fields = asked_for(request, self._block_size)
        fields |= {"answer": answered, "plugged": plugged}
        if found is not None:
            fields["found"] = found.name
        if why:
            fields["why"] = why
        signals.trace("answer", **fields)

    def save(self) -> list[dict[str, object]]:
        """The counts, as values of saved.COUNTS."""
        return save_counts(self._counts)

    def load(self, name: str, saved: Any) -> None:
        """Go on counting from there; what moved lately was elsewhere. Raises BadState."""
        self._counts = load_counts(name, saved)
        self.moves.clear()

    def counts(self) -> dict[str, dict[str, int]]:
        """How often each request got each answer: {"PLUG": {"ACK": 3}}."""
        counted: dict[str, dict[str, int]] = {}
        for (asked, answer), times in sorted(self._counts.items()):
            counted.setdefault(asked, {})[answer] = times
        return counted
