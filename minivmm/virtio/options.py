"""VirtioOptions: switches that every virtio device has, with QEMU's names where QEMU has them.

What the specification forbids to offer is refused here, before a guest starts.
"""

from __future__ import annotations

from dataclasses import dataclass

from minivmm.errors import UsageError
from minivmm.options import number_option, switch_option
from minivmm.pci.msix import MAX_VECTORS
from minivmm.spec.virtio import MAX_QUEUE_SIZE, Feature
from minivmm.units import is_power_of_two, powers_of_two_around


@dataclass(frozen=True, kw_only=True)
class VirtioOptions:
    """Device specs inherit this. Raises UsageError for what no device may offer.

    The defaults are QEMU's. A packed ring takes us as long as a split one (scripts/bench queue),
    and what is off beside it only makes drivers write or check more.
    """

    queue_size: int | None = number_option(
        "descriptors of its queues at most, 1 to 32768, a power of two unless packed=on"
        " (automatic: as the device needs them)",
        default=None,
    )
    packed: bool = switch_option("offer packed rings (RING_PACKED)", default=False)
    event_idx: bool = switch_option(
        "offer to name the next event of interest (EVENT_IDX)", default=True, name="event_idx"
    )
    indirect_desc: bool = switch_option(
        "offer tables of descriptors (INDIRECT_DESC)", default=True, name="indirect_desc"
    )
    in_order: bool = switch_option(
        "offer to use buffers in their order (IN_ORDER)", default=False, name="in_order"
    )
    notification_data: bool = switch_option(
        "offer doorbells that tell the ring's position (NOTIFICATION_DATA)",
        default=False,
        name="notification_data",
    )
    notif_config_data: bool = switch_option(
        "offer doorbells with a value of the device's choice (NOTIF_CONFIG_DATA)",
        default=False,
        name="notif_config_data",
    )
    queue_reset: bool = switch_option(
        "offer to reset single queues (RING_RESET)", default=True, name="queue_reset"
    )
    iommu_platform: bool = switch_option(
        "have drivers use the platform's DMA addresses, which are physical ones here"
        " (ACCESS_PLATFORM)",
        default=False,
        name="iommu_platform",
    )
    ioeventfd: bool = switch_option(
        "have KVM take doorbells; off: they come as exits, and odd values are traced", default=True
    )

    vectors: int | None = number_option(
        f"MSI-X vectors, 0 to {MAX_VECTORS}; with 0 there is no MSI-X, and drivers use the"
        " interrupt pin (automatic: one per queue and one for the configuration, or fewer)",
        default=None,
    )
    flr: bool = switch_option(
        "offer to reset the PCI function (function level reset by Advanced Features)",
        default=False,
    )

    def __post_init__(self) -> None:
        if self.vectors is not None and self.vectors > MAX_VECTORS:
            raise UsageError(
                f"vectors {self.vectors} is out of range: use 0 to {MAX_VECTORS}"
                f" (nearest: {MAX_VECTORS})"
            )
        size = self.queue_size
        if size is None:
            return
        if not 1 <= size <= MAX_QUEUE_SIZE:
            near = 1 if size < 1 else MAX_QUEUE_SIZE
            raise UsageError(
                f"queue-size {size} is out of range: use 1 to {MAX_QUEUE_SIZE} (nearest: {near})"
            )
        if not self.packed and not is_power_of_two(size):
            below, above = powers_of_two_around(size)
            raise UsageError(
                f"queue-size {size} is not a power of two, as split rings need it"
                f" (nearest: {below}, {above}), or use packed=on"
            )

    @property
    def ring_features(self) -> int:
        """The features that these switches offer, and VERSION_1, as bits (virtio-spec 6)."""
        offered = {
            Feature.INDIRECT_DESC: self.indirect_desc,
            Feature.EVENT_IDX: self.event_idx,
            Feature.VERSION_1: True,
            Feature.ACCESS_PLATFORM: self.iommu_platform,
            Feature.RING_PACKED: self.packed,
            Feature.IN_ORDER: self.in_order,
            Feature.NOTIFICATION_DATA: self.notification_data,
            Feature.NOTIF_CONFIG_DATA: self.notif_config_data,
            Feature.RING_RESET: self.queue_reset,
        }
        return sum(feature.mask for feature, wanted in offered.items() if wanted)
