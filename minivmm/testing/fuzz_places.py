"""Places: how a fuzz step names an address, since most addresses depend on what came before.

A place is a name and an offset in bytes, which may be negative. Names are those of FIXED, and:

    ring, used    descriptors and device's part of the function's first queue that is set up
    config        the function's configuration space, by ECAM
    COMMON, ...   a virtio structure (names of CapabilityType)
    msix          its last BAR
"""

from __future__ import annotations

from minivmm.spec import platform
from minivmm.testing.fuzz_world import HIGH_RAM, LOW_RAM, REGION

SCRATCH, SCRATCH_SIZE = 0x8000, 0x8000
"""Guest memory for indirect tables and hostile buffers; below what is allocated."""

Place = tuple[str, int]
Entry = tuple[Place, int, int, int]
"""Address, length, flags, and `next` or buffer id of a descriptor."""

FIXED = {
    "ram": 0,
    "scratch": SCRATCH,
    "border": LOW_RAM.end,
    "end": HIGH_RAM.end,
    "block": REGION.base,
    "last": REGION.end,
    "ecam": platform.ECAM_BASE,
    "mmio32": platform.MMIO32_BASE,
    "mmio64": 1 << 40,
    "top": 1 << 64,
}
