"""The saved form of a disk; its content stays where it is, in the user's file."""

from __future__ import annotations

from construct import Flag, Int64ul, Struct

from minivmm.virtio.saved_forms import FEATURES

BLK = Struct(
    "features" / FEATURES,
    "size" / Int64ul,  # bytes
    "changed" / Int64ul,  # when the file was last written: nanoseconds since 1970; 0: not known
    "writeback" / Flag,
    "failures" / Int64ul,
)
