"""The memory map that the guest boots with: never a device region, those virtio-mem adds."""

from __future__ import annotations

from minivmm.boot import places
from minivmm.memory.layout import AddressMap
from minivmm.spec import platform
from minivmm.spec.e820 import E820Entry, E820Type


def memory_map(address_map: AddressMap) -> tuple[E820Entry, ...]:
    """Every range the kernel must know, in address order (reference F.11).

    ECAM must be reserved or Linux does not use it; KVM's own pages must never become RAM (F.1).
    """
    low, *high = address_map.ram
    ecam = address_map.ecam
    return (
        E820Entry(0, places.LOW_USABLE_END, E820Type.RAM),
        E820Entry(
            places.LOW_USABLE_END,
            places.KERNEL_START - places.LOW_USABLE_END,
            E820Type.RESERVED,
        ),
        E820Entry(places.KERNEL_START, low.end - places.KERNEL_START, E820Type.RAM),
        E820Entry(ecam.base, ecam.size, E820Type.RESERVED),
        E820Entry(platform.IDENTITY_MAP_BASE, platform.KVM_RESERVED_SIZE, E820Type.RESERVED),
        *(E820Entry(window.base, window.size, E820Type.RAM) for window in high),
    )
