"""Forms of what PCI saves; what makes sense in them is judged where it is loaded."""

from __future__ import annotations

from construct import (
    Bytes,
    BytesInteger,
    Flag,
    GreedyBytes,
    Int8ul,
    Int16ul,
    Int32ul,
    Prefixed,
    PrefixedArray,
    Struct,
)

from minivmm.spec.pci import CONFIG_SIZE

HOST = Struct("address" / Int32ul)
"""What was written to port CF8 last."""

PCI = Struct(
    "config" / Bytes(CONFIG_SIZE),
    "decoded" / PrefixedArray(Int8ul, Flag),  # of each BAR: is it mapped where its register says?
)
"""A function."""

MSIX = Struct(
    "table" / Prefixed(Int16ul, GreedyBytes),
    "pending" / BytesInteger(16, swapped=True),  # a bit a vector
)
