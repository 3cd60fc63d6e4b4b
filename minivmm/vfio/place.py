"""Place: a device of this host as sysfs shows it, and why it cannot be passed on, if so.

Opening it is host.py's.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from minivmm.errors import HostError, UsageError

SYSFS = Path("/sys")
_ADDRESS = re.compile(r"(?:([0-9a-fA-F]{4}):)?([0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7])")


@dataclass(frozen=True)
class Place:
    """Where a device is: `path` is its directory in sysfs, `name` what that is called."""

    name: str
    path: Path

    @property
    def group(self) -> str:
        """Its IOMMU group's number. Raises HostError if it has none."""
        link = self.path / "iommu_group"
        if not link.exists():
            raise HostError(
                f"{self.name} has no IOMMU, so its DMA could not be kept to the guest's memory:"
                " switch the IOMMU on in the firmware's setup, and boot with intel_iommu=on or"
                " amd_iommu=on"
            )
        return link.resolve().name

    @property
    def driver(self) -> str | None:
        """The host's driver that it is bound to; None if it is bound to none."""
        link = self.path / "driver"
        return link.resolve().name if link.exists() else None

    @property
    def character_device(self) -> str | None:
        """Its name in /dev/vfio/devices, on hosts that have these; None elsewhere."""
        names = sorted(one.name for one in (self.path / "vfio-dev").glob("vfio*"))
        return names[0] if names else None

    @property
    def held_by_vfio(self) -> bool:
        """Is it bound to a driver that gives it to user space? (vfio-pci, mlx5_vfio_pci, mdev)"""
        if (self.path / "subsystem").resolve().name == "mdev":
            return True
        return self.character_device is not None or "vfio" in (self.driver or "")

    def neighbours(self) -> list[str]:
        """Other devices of its group that drivers of the host have, as "NAME (driver DRIVER)"."""
        found = []
        for one in sorted((self.path / "iommu_group" / "devices").iterdir()):
            other = Place(one.name, one.resolve())
            driver = other.driver
            if (
                other.name != self.name
                and driver not in (None, "pcieport")
                and not (other.held_by_vfio)
            ):
                found.append(f"{other.name} (driver {driver})")
        return found

    def check(self) -> None:
        """Raises HostError, with the remedy, unless it can be opened by VFIO."""
        _ = self.group
        if not self.held_by_vfio:
            held = (
                f"is bound to the host's driver {self.driver}" if self.driver else "has no driver"
            )
            raise HostError(f"{self.name} {held}: give it to VFIO, as root: {self.rebinding()}")
        if neighbours := self.neighbours():
            raise HostError(
                f"{self.name} shares IOMMU group {self.group} with {', '.join(neighbours)}, and a"
                " group can only be passed on as a whole: bind those to vfio-pci as well, or put"
                " the device into another slot"
            )

    def rebinding(self) -> str:
        """Shell commands that bind it to vfio-pci."""
        bus = "/sys/bus/pci"
        unbind = f" echo {self.name} > {bus}/devices/{self.name}/driver/unbind;"
        return (
            f"`modprobe vfio-pci; echo vfio-pci > {bus}/devices/{self.name}/driver_override;"
            f"{unbind if self.driver else ''} echo {self.name} > {bus}/drivers_probe`"
        )


def by_address(text: str, sysfs: Path | None = None) -> Place:
    """The PCI device at `text`, `[DOMAIN:]BUS:DEVICE.FUNCTION` in hexadecimal.

    Raises UsageError if that is no address, HostError if nothing is there.
    """
    address = full_address(text)
    path = (sysfs or SYSFS) / "bus/pci/devices" / address
    if not path.exists():
        raise HostError(f"this host has no PCI device {address}: `lspci -D` lists those it has")
    return Place(address, path.resolve())


def by_path(text: str) -> Place:
    """The device whose directory in sysfs is `text`. Raises HostError if there is none."""
    path = Path(os.path.realpath(text))
    if not (path / "subsystem").exists():
        raise HostError(
            f"{text} is no device's directory in sysfs: devices of mdev are in"
            " /sys/bus/mdev/devices, those of PCI in /sys/bus/pci/devices"
        )
    return Place(path.name, path)


def full_address(text: str) -> str:
    """`text` with its domain, which may be left out if it is 0000. Raises UsageError."""
    found = _ADDRESS.fullmatch(text)
    if not found:
        raise UsageError(
            f"{text!r} is no PCI address: write it as `lspci -D` does, 0000:01:00.0 or 01:00.0"
        )
    return f"{found[1] or '0000'}:{found[2]}".lower()
