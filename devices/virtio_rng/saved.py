"""The saved form of an entropy device."""

from __future__ import annotations

from construct import Flag, Int64ul, Struct

from minivmm.virtio.saved_forms import FEATURES

RNG = Struct(
    "features" / FEATURES,
    "given" / Int64ul,
    "left" / Int64ul,  # bytes in this period, or device.NO_LIMIT
    "period_runs" / Flag,
)
