"""Does a saved state of a virtio-mem device make sense? Its form is in saved_forms.py.

Times are kept as ages, so that a diagnosis goes on where it was: what the guest waits for goes on
as well.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from minivmm.devices.virtio_mem.state import RegionState, usable_for
from minivmm.saved import require
from minivmm.spec.virtio_mem import Feature, RequestType, ResponseType

_MICROSECONDS = 1_000_000
NEVER = NO_TARGET = (1 << 64) - 1
"""In place of an age, or of a size."""

Counts = Counter[tuple[str, str]]
"""(request, answer) -> times."""
UNKNOWN = "UNKNOWN"
"""What a request is called whose type does not exist."""
_ANSWERS = {answer.name for answer in ResponseType}
_REQUESTS = {request.name for request in RequestType} | {UNKNOWN}


def save_counts(counts: Counts) -> list[dict[str, object]]:
    """Values of COUNTS."""
    return [
        {"asked": asked, "answer": answer, "times": times}
        for (asked, answer), times in sorted(counts.items())
    ]


def load_counts(name: str, saved: Any) -> Counts:
    """What was saved. Raises BadState about device `name`."""
    counts: Counts = Counter()
    for one in saved:
        what = f"{one.answer} to {one.asked}"
        known = one.asked in _REQUESTS and one.answer in _ANSWERS
        require(known, name, "answers", what, "there is no such answer or request")
        counts[one.asked, one.answer] = one.times
    return counts


def age(then: float | None, now: float) -> int:
    """How long ago `then` was (None: never), as AGE."""
    return NEVER if then is None else max(0, round((now - then) * _MICROSECONDS))


def moment(age: int, now: float) -> float | None:
    """When that was."""
    return None if age == NEVER else now - age / _MICROSECONDS


def judge(name: str, saved: Any, state: RegionState, *, insists: bool) -> None:
    """Raises BadState unless `saved`, of form MEM, can be of the device with `state`.

    `insists`: it refuses drivers that do not promise to keep away from unplugged memory.
    """
    block, region = state.block_size, state.window.size
    requested, usable = saved.requested_size, saved.usable_region_size
    for field, size in (("requested-size", requested), ("usable-region-size", usable)):
        right = size % block == 0 and size <= region
        require(right, name, field, size, f"blocks have {block} bytes, the region has {region}")
    least = usable_for(requested, block, region)
    why = f"requested-size {requested} needs {least}"
    require(usable >= least, name, "usable-region-size", usable, why)
    _judge_runs(name, saved.runs, usable // block)
    promised = bool(saved.features & Feature.UNPLUGGED_INACCESSIBLE)
    silent = promised or not (saved.features or saved.unpromised)
    why = "this device refuses drivers without UNPLUGGED_INACCESSIBLE"
    require(silent or not insists, name, "features", f"{saved.features:#x}", why)
    clash = saved.unpromised and promised
    require(not clash, name, "features", f"{saved.features:#x}", "promised, and yet not")
    short = saved.short_of
    require(short <= region, name, "shortage", short, f"the region has {region} bytes")


def _judge_runs(name: str, runs: list[tuple[int, int]], usable: int) -> None:
    """Raises BadState unless all are among the first `usable` blocks, and as long as can be."""
    end = -1
    for first, count in runs:
        if not end < first < first + count <= usable:  # there may be millions: no text for nothing
            why = f"runs do not ascend with gaps, or leave the {usable} usable blocks"
            require(False, name, "plugged blocks", f"{first}+{count}", why)
        end = first + count
