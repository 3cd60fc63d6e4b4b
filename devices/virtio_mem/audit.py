"""audit(): do unplugged blocks hold host memory? They must not: it would be lost to everybody."""

from __future__ import annotations

from dataclasses import dataclass

from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.memory.layout import Window

_SHOWN = 8


@dataclass(frozen=True)
class Audit:
    """Bytes of host memory behind one device, by the state of the blocks they stand behind."""

    plugged: int
    """Bytes plugged, in host memory or not."""
    resident_plugged: int
    resident_unplugged: int
    """0 unless there is a bug, or somebody accesses what is not plugged."""
    places: tuple[str, ...]
    """Guest physical addresses of the first unplugged runs that hold host memory."""


def audit(device: VirtioMem) -> Audit:
    """Look behind every block of `device` now. Use with the machine's lock held.

    Walks the region's page tables (Region.resident_in), so it is for the asking only.
    """
    state, region = device.state, device.region
    unplugged = 0
    places: list[str] = []
    for offset, length in state.unplugged_ranges():
        found = region.resident_in(offset, length)
        unplugged += found
        if found and len(places) < _SHOWN:
            places.append(str(Window(device.window.base + offset, length)))
    plugged = sum(
        region.resident_in(offset, length)
        for offset, length in state.plugged_ranges(0, device.region_size)
    )
    return Audit(device.plugged_size, plugged, unplugged, tuple(places))
