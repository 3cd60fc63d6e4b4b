"""What a host has for passing devices on, without opening any: for `minivmm doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from minivmm.vfio import host, place
from minivmm.vfio.place import Place


@dataclass(frozen=True)
class Survey:
    """`groups`: IOMMU groups that have devices; `ready`: names of devices that VFIO holds; `ways`:
    how one is opened, "group" and "iommufd", as far as this process finds their files.
    """

    groups: int
    ready: tuple[str, ...]
    ways: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Could a device be passed on now?"""
        return bool(self.ready and self.ways)

    @property
    def detail(self) -> str:
        """One line on what was found."""
        if not self.groups:
            return "no device is behind an IOMMU"
        devices = ", ".join(self.ready) or "no device"
        ways = " and ".join(self.ways) or "neither /dev/vfio/vfio nor /dev/iommu is there"
        return f"{self.groups} IOMMU groups; VFIO holds {devices}; by {ways}"

    @property
    def cure(self) -> str:
        """What helps if it is not ok."""
        if not self.groups:
            return (
                "the IOMMU switched on in the firmware's setup, and intel_iommu=on or amd_iommu=on"
            )
        return "`modprobe vfio-pci`, and a device bound to it (docs/vfio.md)"


def survey(sysfs: Path | None = None, dev: Path | None = None) -> Survey:
    """Look at /sys and /dev, or at copies of them for tests. Cost grows with the host's devices."""
    sysfs, dev = sysfs or place.SYSFS, dev or host.DEV
    groups = [one for one in sysfs.glob("kernel/iommu_groups/*/devices") if any(one.iterdir())]
    devices = [Place(link.name, link.resolve()) for group in groups for link in group.iterdir()]
    files = {"group": dev / "vfio/vfio", "iommufd": dev / "iommu"}
    return Survey(
        groups=len(groups),
        ready=tuple(sorted(one.name for one in devices if one.held_by_vfio)),
        ways=tuple(way for way, file in files.items() if file.exists()),
    )
