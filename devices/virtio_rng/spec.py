"""VirtioRngSpec: what the user says about an entropy device, with QEMU's property names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from minivmm.devices.spec import VirtioDeviceSpec
from minivmm.options import number_option, option, size_option


@dataclass(frozen=True, kw_only=True)
class VirtioRngSpec(VirtioDeviceSpec):
    """A virtio-rng device. Raises UsageError when constructed from nonsense."""

    prefix: ClassVar[str] = "rng"
    modules: ClassVar[tuple[str, ...]] = ("virtio_rng",)

    id: str = option("name of the device", default="rng0")
    max_bytes: int | None = size_option(
        "most random bytes that the guest gets in a period (automatic: no limit)", default=None
    )
    period: int = number_option("the period of max-bytes, in milliseconds", default=65536)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_bytes == 0:
            self.refuse("max-bytes 0 would starve the guest: give 1 or more, or leave it out")
        if self.period == 0:
            self.refuse("period 0 is no time at all: give 1 millisecond or more")
