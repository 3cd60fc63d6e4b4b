"""Ledger: every answer is entered here: counted, remembered for a diagnosis, traced."""

from __future__ import annotations

from collections import Counter

from minivmm.devices.virtio_mem import answers
from minivmm.devices.virtio_mem.activity import Activity
from minivmm.spec.virtio_mem import MemRequest, RequestType, ResponseType
from minivmm.virtio.device import Signals


class Ledger:
    """The answers of one device since it was made."""

    def __init__(self, activity: Activity) -> None:
        self._activity = activity
        self._counts: Counter[tuple[str, str]] = Counter()

    def enter(
        self,
        signals: Signals,
        request: MemRequest,
        answer: ResponseType,
        *,
        plugged: int,
        why: str = "",
    ) -> None:
        """`request` got `answer`, for the reason `why`; now `plugged` bytes are plugged."""
        known = request.type in answers.TABLE
        asked = RequestType(request.type).name if known else "UNKNOWN"
        self._counts[asked, answer.name] += 1
        self._activity.answered(request.type, answer, request.nb_blocks, why)
        fields: dict[str, object] = {"type": asked if known else request.type}
        if known and request.type != RequestType.UNPLUG_ALL:
            fields |= {"addr": f"{request.addr:#x}", "blocks": request.nb_blocks}
        fields |= {"answer": answer.name, "plugged": plugged}
        if why:
            fields["why"] = why
        signals.trace("request", **fields)

    def counts(self) -> dict[str, dict[str, int]]:
        """How often each request got each answer: {"PLUG": {"ACK": 3}}."""
        counted: dict[str, dict[str, int]] = {}
        for (asked, answer), times in sorted(self._counts.items()):
            counted.setdefault(asked, {})[answer] = times
        return counted
