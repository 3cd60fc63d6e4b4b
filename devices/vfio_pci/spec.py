"""VfioPciSpec: what the user says about a device of the host that is passed on, as QEMU says it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from minivmm.devices.spec import DeviceSpec
from minivmm.errors import UsageError
from minivmm.options import option, switch_option
from minivmm.vfio.place import Place, by_address, by_path, full_address


@dataclass(frozen=True, kw_only=True)
class VfioPciSpec(DeviceSpec):
    """A device of the host. Raises UsageError when constructed from nonsense."""

    prefix: ClassVar[str] = "vfio"
    paths: ClassVar[tuple[str, ...]] = ("sysfsdev",)

    id: str = option("name of the device", default="vfio0")
    host: str | None = option(
        "its PCI address on the host, as lspci -D writes it: 0000:01:00.0 (or use sysfsdev=)",
        default=None,
    )
    sysfsdev: str | None = option(
        "its directory in sysfs, as mdev devices are named: /sys/bus/mdev/devices/UUID",
        default=None,
    )
    iommufd: bool | None = switch_option(
        "open it by iommufd, which has no limit on DMA mappings, and not by its group (automatic:"
        " only on hosts without groups)",
        default=None,
    )
    guest_module: str | None = option(
        "Linux module that drives it in the guest, loaded there at its start (automatic: none; what"
        " is built into the kernel needs none)",
        default=None,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.host is None) == (self.sysfsdev is None):
            self.refuse("a device is named by host= or by sysfsdev=: give one of the two")
        if self.host is not None:
            try:
                full_address(self.host)
            except UsageError as error:
                self.refuse(str(error))

    @property
    def summary(self) -> str:
        """The device."""
        return self.host or self.sysfsdev or ""

    @property
    def guest_modules(self) -> tuple[str, ...]:
        """The one that was named."""
        return (self.guest_module,) if self.guest_module else ()

    def place(self) -> Place:
        """Where it is. Raises HostError if this host has no such device."""
        return by_path(self.sysfsdev) if self.sysfsdev else by_address(self.host or "")


def check_together(specs: Sequence[VfioPciSpec]) -> None:
    """Raises UsageError if one machine cannot have all of `specs`."""
    if len({one.iommufd for one in specs} - {None}) > 1:
        raise UsageError(
            "devices of one machine are passed on the same way: give all of them iommufd=on, or all"
            " iommufd=off"
        )
    known: dict[str, str] = {}
    for one in specs:
        name = full_address(one.host) if one.host else one.sysfsdev or ""
        if name in known:
            raise UsageError(f"{known[name]} and {one.id} are the same device, {name}: give one")
        known[name] = one.id
