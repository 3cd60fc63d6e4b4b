"""Forms in which a vCPU, and what KVM keeps for the VM, are saved; saved.py uses them."""

from __future__ import annotations

from construct import (
    Bytes,
    GreedyBytes,
    Int8ul,
    Int16ul,
    Int32ul,
    Int64ul,
    Prefixed,
    PrefixedArray,
    Struct,
)

from minivmm.kvm.saved import CHIP_SIZE, CHIPS

VCPU = Struct(
    "tsc_khz" / Int32ul,
    "pieces"
    / PrefixedArray(
        Int8ul,
        Struct("name" / Prefixed(Int8ul, GreedyBytes), "value" / Prefixed(Int32ul, GreedyBytes)),
    ),
    "msrs" / PrefixedArray(Int16ul, Struct("index" / Int32ul, "value" / Int64ul)),
)

VM = Struct("clock" / Int64ul, "chips" / Bytes(CHIP_SIZE)[len(CHIPS)])
