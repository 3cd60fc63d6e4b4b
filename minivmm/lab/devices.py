"""PCI devices that a lab has for passing on: QEMU's options for them, and where the lab finds them.

They come with an IOMMU. init.sh loads MODULES and binds each device to vfio-pci.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minivmm.errors import UsageError

MODULES = ("virtio_iommu", "vfio_iommu_type1", "vfio_pci")
MODULE_OPTIONS = {
    # The emulated machine does not remap interrupts, so VFIO would not let a device go.
    "vfio_iommu_type1": "allow_unsafe_interrupts=1",
}

FIRST_SLOT = 0x10
LAST_SLOT = 0x1E
"""Slots of bus 0 for the devices; QEMU puts those of the lab itself below, the chipset above."""


@dataclass(frozen=True)
class Attached:
    """Devices of a lab: words for QEMU's command line, and their addresses in the lab."""

    words: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()


def attach(devices: Sequence[str]) -> Attached:
    """Give each of `devices`, texts for QEMU's -device, a slot: 0000:00:10.0, 0000:00:11.0, ...

    Raises UsageError if there are too many, or one has chosen its slot or bus itself.
    """
    if not devices:
        return Attached()
    if len(devices) > LAST_SLOT - FIRST_SLOT + 1:
        raise UsageError(
            f"{len(devices)} devices for the lab: at most {LAST_SLOT - FIRST_SLOT + 1} are possible"
        )
    words, addresses = ["-device", "virtio-iommu-pci"], []
    for slot, device in enumerate(devices, FIRST_SLOT):
        for chosen in ("addr", "bus"):
            if any(part.startswith(f"{chosen}=") for part in device.split(",")[1:]):
                raise UsageError(f"lab device {device!r}: leave out {chosen}=, the lab chooses it")
        words += ["-device", f"{device},bus=pcie.0,addr={slot:#x}"]
        addresses.append(f"0000:00:{slot:02x}.0")
    return Attached(tuple(words), tuple(addresses))
