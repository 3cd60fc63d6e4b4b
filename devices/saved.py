"""Forms in which the board's own small devices save their state; virtio devices have theirs."""

from __future__ import annotations

from construct import Flag, GreedyBytes, Int8ul, Int32ul, Prefixed, Struct

SERIAL = Struct(
    "ier" / Int8ul,
    "fcr" / Int8ul,
    "lcr" / Int8ul,
    "mcr" / Int8ul,
    "scratch" / Int8ul,
    "divisor" / Int8ul[2],
    "overrun" / Flag,
    "thr_pending" / Flag,
    "modem_deltas" / Int8ul,
    "polls" / Int8ul,
    "fifo" / Prefixed(Int32ul, GreedyBytes),
    "backlog" / Prefixed(Int32ul, GreedyBytes),
)
"""Of what waits for the guest, every byte or break has 16 bits."""

POWER = Struct("pressed" / Flag)
