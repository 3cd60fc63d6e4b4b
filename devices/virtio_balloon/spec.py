"""VirtioBalloonSpec: what the user says about a memory balloon, with QEMU's property names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from minivmm.devices.spec import VirtioDeviceSpec
from minivmm.options import number_option, option, switch_option

MOST_SECONDS = 0xFFFF_FFFF
"""Longest guest-stats-polling-interval, as in QEMU."""


@dataclass(frozen=True, kw_only=True)
class VirtioBalloonSpec(VirtioDeviceSpec):
    """A virtio-balloon device. Raises UsageError when constructed from nonsense.

    Free page hinting is not offered: it is for live migration, and we have none.
    """

    prefix: ClassVar[str] = "balloon"
    modules: ClassVar[tuple[str, ...]] = ("virtio_balloon",)

    id: str = option("name of the device", default="balloon0")
    deflate_on_oom: bool = switch_option(
        "let the guest take pages back from the balloon before it runs out of memory", default=False
    )
    free_page_reporting: bool = switch_option(
        "have the guest tell which of its memory is free, and free it here", default=False
    )
    guest_stats_polling_interval: int = number_option(
        "seconds between two requests for the guest's statistics; 0: none", default=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guest_stats_polling_interval > MOST_SECONDS:
            self.refuse(
                f"guest-stats-polling-interval {self.guest_stats_polling_interval} is out of"
                f" range: use 0 to {MOST_SECONDS}"
            )
