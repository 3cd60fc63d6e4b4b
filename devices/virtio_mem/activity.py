"""Activity: what a device remembers of its dealings with its driver; diagnosis.py concludes.

Everything is a number or a short text, so its size does not depend on how much a driver asks.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from minivmm.devices.virtio_mem.saved import (
    NEVER,
    NO_TARGET,
    age,
    load_counts,
    moment,
    save_counts,
)
from minivmm.saved import require
from minivmm.spec.virtio_mem import RequestType, ResponseType

_KINDS = {int(kind): (kind, kind.name) for kind in RequestType}
_ANSWERS = {answer: answer.name for answer in ResponseType}
_SIGN = {RequestType.PLUG: 1, RequestType.UNPLUG: -1}
_LONGEST_TEXT = 200
TIMES = (
    "target_at",
    "config_at",
    "request_at",
    "plug_at",
    "unplug_at",
    "progress_at",
    "change_at",
)
"""Attributes of an Activity that are times."""


@dataclass(slots=True)
class Run:
    """Answers of one kind in a row: how many, since when, why; `blocks` of the latest request."""

    answer: ResponseType
    times: int
    began: float
    request: RequestType
    blocks: int
    why: str


class Activity:
    """Times are those of `clock`, in seconds; None stands for "never".

    STATE requests are counted but change nothing else: a crash kernel that reads a dump sends many
    of them, and they say nothing about how plugging goes. Unknown requests only count as requests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.target_at = clock()
        """When the requested size last changed."""
        self.config_at: float | None = None
        """When the driver was last sent a configuration interrupt."""
        self.request_at: float | None = None
        """When it last asked for anything at all."""
        self.plug_at: float | None = None
        """When it last asked to plug."""
        self.unplug_at: float | None = None
        """When it last asked to unplug, be it blocks or everything."""
        self.progress_at: float | None = None
        """When the plugged size last changed at a driver's request."""
        self.change_at: float | None = None
        """When it last asked to plug or unplug."""
        self.target: int | None = None
        """Requested size in bytes, once it was changed."""
        self.answers: Counter[tuple[str, str]] = Counter()
        """("PLUG", "ACK") -> times, since the target last changed."""
        self.moved = 0
        """Blocks plugged less those unplugged since then; UNPLUG_ALL does not enter."""
        self.run: Run | None = None
        """The latest answers to PLUG, UNPLUG and UNPLUG_ALL that are alike, of this driver."""
        self.missing_features = 0
        """Feature bits for want of which this driver's FEATURES_OK was refused."""

    def target_changed(self, size: int) -> None:
        """The host wants `size` bytes plugged from now on; counting begins anew."""
        self.target_at = self.clock()
        self.target = size
        self.answers.clear()
        self.moved = 0

    def config_sent(self) -> None:
        """The driver is being sent a configuration interrupt, which ends a wait of Linux' driver.

        (Linux virtio_mem_config_changed() queues the worker, which cancels its retry timer.)
        """
        self.config_at = self.clock()

    def answered(self, request_type: int, answer: ResponseType, blocks: int, why: str = "") -> None:
        """A request for `blocks` blocks got `answer`; `why` says what was wrong, if anything."""
        now = self.clock()
        self.request_at = now
        if request_type not in _KINDS:
            return
        request, name = _KINDS[request_type]
        self.answers[name, _ANSWERS[answer]] += 1
        if request is RequestType.STATE:
            return
        self.change_at = now
        if request is RequestType.PLUG:
            self.plug_at = now
        else:
            self.unplug_at = now
        if answer is ResponseType.ACK:
            self.progress_at = now
            self.moved += _SIGN.get(request, 0) * blocks
        self._count(request, answer, blocks, why[:_LONGEST_TEXT], now)

    def features_refused(self, missing: int) -> None:
        """FEATURES_OK was refused since the driver did not take the features `missing` (masks)."""
        self.missing_features = missing

    def driver_gone(self) -> None:
        """The device was reset: what the last driver thought of it is no longer of interest."""
        self.run = None
        self.missing_features = 0

    def save(self) -> dict[str, object]:
        """Values of saved.ACTIVITY."""
        now, run = self.clock(), self.run
        return {
            **{name: age(getattr(self, name), now) for name in TIMES},
            "target": NO_TARGET if self.target is None else self.target,
            "answers": save_counts(self.answers),
            "moved": self.moved,
            "missing_features": self.missing_features,
            "run": run and asdict(run) | {"began": age(run.began, now)},
        }

    def load(self, name: str, saved: Any) -> None:
        """Take what was saved over. Raises BadState about device `name`."""
        now = self.clock()
        for field in TIMES:
            setattr(self, field, moment(getattr(saved, field), now))
        began = saved.target_at != NEVER
        require(began, name, "target", "never set", "a device has one from its beginning")
        self.target = None if saved.target == NO_TARGET else saved.target
        self.answers = load_counts(name, saved.answers)
        self.moved = saved.moved
        self.missing_features = saved.missing_features
        self.run = _load_run(name, saved.run, now)

    def _count(
        self, request: RequestType, answer: ResponseType, blocks: int, why: str, now: float
    ) -> None:
        run = self.run
        if run is None or run.answer is not answer:
            self.run = Run(answer, 1, now, request, blocks, why)
        else:
            run.times += 1
            run.request, run.blocks, run.why = request, blocks, why


def _load_run(name: str, saved: Any, now: float) -> Run | None:
    if saved is None:
        return None
    known = saved.answer in set(ResponseType) and saved.request in set(RequestType)
    what = f"{saved.answer} to {saved.request}"
    require(known, name, "latest answer", what, "there is no such answer or request")
    require(saved.began != NEVER, name, "latest answer", what, "it was never given")
    began = moment(saved.began, now) or 0.0
    answer, request = ResponseType(saved.answer), RequestType(saved.request)
    return Run(answer, saved.times, began, request, saved.blocks, saved.why)
