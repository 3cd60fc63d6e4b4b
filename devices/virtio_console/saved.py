"""The saved form of a console: what its guest and its driver know of ports, and bytes on their way.

Who owns a port on the host is not in it: owners end with their process.
"""

from __future__ import annotations

from construct import (
    Flag,
    GreedyBytes,
    Int8ul,
    Int16ul,
    Int32ul,
    Prefixed,
    PrefixedArray,
    Struct,
)

from minivmm.virtio.saved_forms import FEATURES

MESSAGE = Struct("port" / Int16ul, "event" / Int16ul, "value" / Int16ul)

PORT = Struct(
    "guest_open" / Flag,
    "host_open" / Flag,
    "drained" / Flag,
    "pool" / Int16ul,
    "backlog" / Prefixed(Int32ul, GreedyBytes),  # sent, and in no buffer of the guest yet
)

CONSOLE = Struct(
    "features" / FEATURES,
    "lives" / Int32ul,
    "ports_added" / Flag,
    "outbox" / PrefixedArray(Int16ul, MESSAGE),  # oldest first
    "ready" / Int32ul,  # a bit a port
    "ports" / PrefixedArray(Int8ul, PORT),
)
