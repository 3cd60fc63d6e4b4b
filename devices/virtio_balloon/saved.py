"""The saved form of a balloon. Which pages are in it, it does not know (pages.py)."""

from __future__ import annotations

from construct import Flag, If, Int8ul, Int16ul, Int32ul, Int64ul, PrefixedArray, Rebuild, Struct

from minivmm.devices.virtio_balloon.statistics import NAMES
from minivmm.spec.virtio_balloon import Queue
from minivmm.virtio.saved_forms import BUFFER, FEATURES

STATISTICS = Struct(
    "interval" / Int32ul,
    "last_update" / Int64ul,
    "stats" / Int64ul[len(NAMES)],  # in the order of NAMES
    "has_buffer" / Flag,  # the oldest chain of its queue that is in flight
    "wanted" / Flag,
    "polling" / Flag,
)

BALLOON = Struct(
    "features" / FEATURES,
    "num_pages" / Int32ul,
    "actual" / Int32ul,
    "poison" / Int32ul,
    "roles" / Int8ul[len(Queue)],  # of each queue
    "freed" / Int64ul,
    "kept" / Int64ul,
    "refused" / Int64ul,
    "statistics" / STATISTICS,
    "reports" / Rebuild(Flag, lambda this: this.report is not None),
    # What is left of the chain that is in flight in the queue of reports.
    "report" / If(lambda this: this.reports, PrefixedArray(Int16ul, BUFFER)),
)
