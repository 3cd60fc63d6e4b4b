"""HostDevices: opens devices for one machine, and the container that all of them share.

Two ways lead to a device: its group and a container (every host with VFIO), or its own character
device and iommufd (newer hosts). What goes wrong is said in one line with the remedy.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from ctypes import byref, sizeof
from pathlib import Path

from minivmm.closing import Closing
from minivmm.errors import HostError
from minivmm.vfio import abi
from minivmm.vfio.container import Container, Type1Container
from minivmm.vfio.device import VfioDevice
from minivmm.vfio.ioctl import Ioctl, call
from minivmm.vfio.iommufd import IommufdContainer
from minivmm.vfio.place import Place

DEV = Path("/dev")


class HostDevices(Closing):
    """`devices` in the order of `places`, and the `container` behind which all of them are.

    `iommufd` True: by iommufd, False: by groups, None: by groups if all have one. Close it when
    nothing uses the devices any more. Raises HostError.

    `show` is called with each of `files` before a device is opened by it: KVM wants to know.
    """

    container: Container

    def __init__(
        self,
        places: Sequence[Place],
        *,
        iommufd: bool | None = None,
        show: Callable[[int], None] = lambda fd: None,
        dev: Path | None = None,
    ) -> None:
        self._dev = dev or DEV
        self._show = show
        self.devices: list[VfioDevice] = []
        self.files: list[int] = []
        """Descriptors of groups, or of the devices themselves."""
        self._groups: dict[str, int] = {}
        for place in places:
            place.check()
        modern = not self._all_have_groups(places) if iommufd is None else iommufd
        with ExitStack() as owned:
            self._owned = owned
            if modern:
                self._open_all_by_iommufd(places)
            else:
                self._open_all_by_group(places)
            self._owned = owned.pop_all()

    @property
    def way(self) -> str:
        """How they were opened: "iommufd" or "group"."""
        return "group" if self._groups else "iommufd"

    def close(self) -> None:
        """Give the devices back, then undo all mappings. Harmless when repeated."""
        self._owned.close()

    def _all_have_groups(self, places: Sequence[Place]) -> bool:
        """False only on hosts that were built without (CONFIG_VFIO_GROUP) but with iommufd."""
        if not (self._dev / "iommu").exists():
            return True
        return all((self._dev / "vfio" / place.group).exists() for place in places)

    # -- groups and a container ----------------------------------------------------------------

    def _open_all_by_group(self, places: Sequence[Place]) -> None:
        for place in places:
            if place.group not in self._groups:
                self._open_group(place)
        for place in places:
            self._open_by_group(place)

    def _open_group(self, place: Place) -> None:
        """Open the device's group and put it into the container."""
        path = self._dev / "vfio" / place.group
        if (self._dev / f"vfio/noiommu-{place.group}").exists():
            raise HostError(
                f"{place.name} is in VFIO's mode without IOMMU, where its DMA reaches all of the"
                " host: switch the IOMMU on, and enable_unsafe_noiommu_mode off"
            )
        group = self._open(path, place)
        self._owned.callback(os.close, group)
        status = abi.GroupStatus(argsz=sizeof(abi.GroupStatus))
        call(group, Ioctl.GROUP_GET_STATUS, byref(status))
        if not status.flags & abi.GROUP_VIABLE:
            raise HostError(
                f"{place.name} shares IOMMU group {place.group} with devices that the host uses:"
                f" bind all in {place.path}/iommu_group/devices to vfio-pci"
            )
        try:
            if self._groups:
                self._join(group, self._control)
            else:
                self._start_container(group, place)
        except OSError as error:
            raise HostError(
                f"{place.name}: its IOMMU group {place.group} cannot be used by this machine:"
                f" {error.strerror}"
            ) from error
        self._groups[place.group] = group
        self._tell(group)

    def _start_container(self, group: int, place: Place) -> None:
        """A container with its first group: only then can it be given its IOMMU."""
        control = self._open(self._dev / "vfio/vfio", place)
        with ExitStack() as undo:
            undo.callback(os.close, control)
            if call(control, Ioctl.GET_API_VERSION) != abi.API_VERSION:
                raise HostError("this host's VFIO is of a version that minivmm does not know")
            if not call(control, Ioctl.CHECK_EXTENSION, abi.TYPE1V2_IOMMU):
                raise HostError(
                    "this host's VFIO has no IOMMU of type 1: `modprobe vfio_iommu_type1`, as root"
                )
            self._join(group, control)
            try:
                call(control, Ioctl.SET_IOMMU, abi.TYPE1V2_IOMMU)
            except PermissionError as error:
                raise HostError(
                    f"{place.name} could send interrupts that the host does not expect, as this"
                    " host does not remap them: switch interrupt remapping on in the firmware's"
                    " setup, or trust the guest:"
                    " `modprobe vfio_iommu_type1 allow_unsafe_interrupts=1`"
                ) from error
            self.container = Type1Container(control)
            undo.pop_all()
        self._control = control
        self._owned.callback(self.container.close)

    def _join(self, group: int, control: int) -> None:
        call(group, Ioctl.GROUP_SET_CONTAINER, byref(ctypes.c_int(control)))

    def _open_by_group(self, place: Place) -> None:
        group = self._groups[place.group]
        name = ctypes.create_string_buffer(place.name.encode())
        try:
            fd = call(group, Ioctl.GROUP_GET_DEVICE_FD, byref(name))
        except OSError as error:
            raise _cannot_open(place, error) from error
        self._adopt(fd, place, owned=tuple(self._groups.values()))

    # -- iommufd -------------------------------------------------------------------------------

    def _open_all_by_iommufd(self, places: Sequence[Place]) -> None:
        if not (self._dev / "iommu").exists():
            raise HostError(
                f"{places[0].name}: this host has no {self._dev}/iommu: `modprobe iommufd`, or use"
                " iommufd=off"
            )
        container = IommufdContainer(self._open(self._dev / "iommu", places[0]))
        self.container = container
        self._owned.callback(container.close)
        for place in places:
            if place.character_device is None:
                raise HostError(
                    f"{place.name} has no character device of VFIO, which iommufd needs:"
                    " use iommufd=off, or a kernel with CONFIG_VFIO_DEVICE_CDEV"
                )
            fd = self._open(self._dev / "vfio/devices" / place.character_device, place)
            try:
                self._tell(fd)
                container.attach(fd)
            except OSError as error:
                os.close(fd)
                raise _cannot_open(place, error) from error
            except HostError:
                os.close(fd)
                raise
            self._adopt(fd, place)

    # ------------------------------------------------------------------------------------------

    def _tell(self, fd: int) -> None:
        self._show(fd)
        self.files.append(fd)

    def _open(self, path: Path, place: Place) -> int:
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise HostError(
                f"{place.name}: this host has no {path}: `modprobe vfio-pci`, as root"
            ) from error
        except PermissionError as error:
            raise HostError(
                f"{place.name}: {path} may not be opened by this user:"
                f" `chown {os.geteuid()} {path}`, as root"
            ) from error
        except OSError as error:
            raise _cannot_open(place, error) from error

    def _adopt(self, fd: int, place: Place, *, owned: Sequence[int] = ()) -> None:
        try:
            device = VfioDevice(fd, place.name, owned=owned)
        except OSError as error:
            os.close(fd)
            raise _cannot_open(place, error) from error
        self._owned.callback(device.close)
        if not device.flags & abi.DeviceFlags.PCI:
            raise HostError(
                f"{place.name} is not a PCI device, and no other can be passed on: use one of"
                " vfio-pci, or an mdev of type vfio-pci"
            )
        self.devices.append(device)


def _cannot_open(place: Place, error: OSError) -> HostError:
    if error.errno == errno.EBUSY:
        return HostError(
            f"{place.name} is in use by another process: end it"
            f" (`fuser -v /dev/vfio/{place.group}` names it)"
        )
    return HostError(f"{place.name} cannot be opened: {error.strerror or error}")
