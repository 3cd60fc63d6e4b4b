"""The form in which a machine saves what its parts do not know."""

from __future__ import annotations

from construct import Flag, GreedyBytes, Int8ul, Int16ul, Prefixed, Struct

MACHINE = Struct(
    "state" / Int8ul,  # an index into stillness.STATES
    "resetting" / Flag,
    "panic" / Prefixed(Int16ul, GreedyBytes),
)
