"""The form in which a virtio-mem device saves its state; what makes sense in it is saved.py's."""

from __future__ import annotations

from struct import Struct as Overlay
from typing import Any

from construct import (
    Adapter,
    Flag,
    GreedyBytes,
    If,
    Int8ul,
    Int16ul,
    Int32ul,
    Int64sl,
    Int64ul,
    PascalString,
    Prefixed,
    PrefixedArray,
    Rebuild,
    Struct,
    ValidationError,
)

from minivmm.virtio.saved_forms import FEATURES

RUN = Struct("first" / Int32ul, "count" / Int32ul)
"""Neighbouring blocks, by number."""

_RUN = Overlay("<II")  # of RUN: a region may have millions


class _Runs(Adapter):  # type: ignore[misc]
    """Bytes that are RUNs, as pairs."""

    def _decode(self, data: bytes, context: Any, path: Any) -> list[tuple[int, int]]:
        if len(data) % _RUN.size:
            raise ValidationError(f"{len(data)} bytes of runs", path=path)
        return list(_RUN.iter_unpack(data))

    def _encode(self, runs: list[tuple[int, int]], context: Any, path: Any) -> bytes:
        return b"".join(_RUN.pack(*run) for run in runs)


COUNTS = PrefixedArray(
    Int8ul,
    Struct(
        "asked" / PascalString(Int8ul, "ascii"),
        "answer" / PascalString(Int8ul, "ascii"),
        "times" / Int64ul,
    ),
)
"""How often which request got which answer."""

AGE = Int64ul
"""Microseconds ago; all ones: never."""

ANSWERS = Struct(
    "answer" / Int16ul,
    "times" / Int64ul,
    "began" / AGE,
    "request" / Int16ul,
    "blocks" / Int64ul,
    "why" / PascalString(Int16ul, "utf8"),
)
"""The latest answers that are alike."""

ACTIVITY = Struct(
    "target_at" / AGE,
    "config_at" / AGE,
    "request_at" / AGE,
    "plug_at" / AGE,
    "unplug_at" / AGE,
    "progress_at" / AGE,
    "change_at" / AGE,
    "target" / Int64ul,  # all ones: was not changed
    "answers" / COUNTS,
    "moved" / Int64sl,
    "missing_features" / FEATURES,
    "has_run" / Rebuild(Flag, lambda this: this.run is not None),
    "run" / If(lambda this: this.has_run, ANSWERS),
)

MEM = Struct(
    "features" / FEATURES,
    "requested_size" / Int64ul,
    "usable_region_size" / Int64ul,
    "unpromised" / Flag,
    "runs" / _Runs(Prefixed(Int32ul, GreedyBytes)),
    "counts" / COUNTS,
    "activity" / ACTIVITY,
    "short_of" / Int64ul,
    "short_why" / PascalString(Int16ul, "utf8"),
    "intrusions" / Int64ul,
    "unplugs" / PrefixedArray(Int16ul, Struct("first" / Int32ul, "count" / Int32ul, "at" / AGE)),
)
