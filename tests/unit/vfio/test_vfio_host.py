"""How devices of the host are found and opened, and what is said when they cannot be."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from minivmm.errors import HostError, UsageError
from minivmm.testing.fake_vfio import FakeHost
from minivmm.testing.fake_vfio_device import FakePciDevice
from minivmm.vfio import ioctl
from minivmm.vfio.host import HostDevices
from minivmm.vfio.place import Place, by_address, by_path, full_address

NAME = "0000:01:00.0"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    made = FakeHost(tmp_path, limit=100)
    monkeypatch.setattr(ioctl, "raw", made.ioctl)
    return made


def open_devices(host: FakeHost, *names: str, iommufd: bool | None = None) -> HostDevices:
    places = [by_address(name, host.sysfs) for name in names]
    return HostDevices(places, iommufd=iommufd, dev=host.dev)


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize(
    ("text", "full"),
    [("01:00.0", "0000:01:00.0"), ("0001:Af:1f.7", "0001:af:1f.7"), (NAME, NAME)],
)
def test_domain_may_be_left_out(text: str, full: str) -> None:
    assert full_address(text) == full


@pytest.mark.parametrize("text", ["", "1:0.0", "0000:01:00", "01:00.8", "../01:00.0", "01:00.0 "])
def test_other_texts_are_no_addresses(text: str) -> None:
    with pytest.raises(UsageError, match="is no PCI address: write it as `lspci -D` does"):
        full_address(text)


def test_container_is_the_kernels(host: FakeHost) -> None:
    host.container.windows = ((0x1000, (1 << 39) - 1),)
    host.add(FakePciDevice(NAME))
    with open_devices(host, NAME) as opened:
        assert opened.way == "group"
        assert opened.container.limit == 100
        assert opened.container.page_sizes == host.container.page_sizes
        assert opened.container.windows == ((0x1000, (1 << 39) - 1),)
        opened.container.map(0x10_0000, 0x7000_0000, 0x4000)
        assert host.container.translate(0x10_1000) == 0x7000_1000
        opened.container.unmap(0x10_0000, 0x4000)
        assert not host.container.mappings


def test_unmapping_nothing_is_an_error(host: FakeHost) -> None:
    host.add(FakePciDevice(NAME))
    with (
        open_devices(host, NAME) as opened,
        pytest.raises(FileNotFoundError, match="0x4000 bytes at iova 0x1000 had 0x0 mapped"),
    ):
        opened.container.unmap(0x1000, 0x4000)


def test_kernel_without_a_limit_has_none(host: FakeHost) -> None:
    host.container.limit = None
    host.add(FakePciDevice(NAME))
    with open_devices(host, NAME) as opened:
        assert opened.container.limit is None
        assert opened.container.windows == host.container.windows


def test_devices_of_two_groups_share_a_container(host: FakeHost) -> None:
    host.add(FakePciDevice("0000:01:00.0"), group="7")
    host.add(FakePciDevice("0000:01:00.1"), group="7")
    host.add(FakePciDevice("0000:02:00.0"), group="8")
    with open_devices(host, "01:00.0", "01:00.1", "02:00.0") as opened:
        assert [one.name for one in opened.devices] == list(host.devices)
        assert len(opened.files) == 2


def test_everything_is_given_back(host: FakeHost) -> None:
    device = host.add(FakePciDevice(NAME))
    os.close(device.open())
    before = open_fds()
    opened = open_devices(host, NAME)
    opened.close()
    opened.close()

    assert open_fds() == before


def no_device(host: FakeHost) -> None:
    """Nothing is there."""


def bound(host: FakeHost) -> None:
    host.add(FakePciDevice(NAME), driver="nvme")


def bound_to_nothing(host: FakeHost) -> None:
    host.add(FakePciDevice(NAME), driver=None)


def shares_its_group(host: FakeHost) -> None:
    host.add(FakePciDevice(NAME))
    host.add(FakePciDevice("0000:01:00.1"), driver="snd_hda_intel")


def without_iommu(host: FakeHost) -> None:
    host.add(FakePciDevice(NAME), group=None)


def group_not_viable(host: FakeHost) -> None:
    host.add(FakePciDevice(NAME))
    host.viable = False


def without_remapping(host: FakeHost) -> None:
    host.add(FakePciDevice(NAME))
    host.remaps_interrupts = False


def without_type1(host: FakeHost) -> None:
    host.add(FakePciDevice(NAME))
    host.has_type1 = False


def without_group_file(host: FakeHost) -> None:
    host.add(FakePciDevice(NAME))
    (host.dev / "vfio/7").unlink()


def without_vfio(host: FakeHost) -> None:
    host.add(FakePciDevice(NAME))
    (host.dev / "vfio/vfio").unlink()


def noiommu(host: FakeHost) -> None:
    host.add(FakePciDevice(NAME))
    (host.dev / "vfio/noiommu-7").touch()


def not_pci(host: FakeHost) -> None:
    host.add(FakePciDevice(NAME, is_pci=False))


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (no_device, "this host has no PCI device 0000:01:00.0: `lspci -D` lists"),
        (
            bound,
            "is bound to the host's driver nvme: give it to VFIO, as root: `modprobe vfio-pci;"
            " echo vfio-pci > /sys/bus/pci/devices/0000:01:00.0/driver_override;"
            " echo 0000:01:00.0 > /sys/bus/pci/devices/0000:01:00.0/driver/unbind;"
            " echo 0000:01:00.0 > /sys/bus/pci/drivers_probe`",
        ),
        (bound_to_nothing, "has no driver: give it to VFIO, as root: `modprobe vfio-pci; echo"),
        (
            shares_its_group,
            "shares IOMMU group 7 with 0000:01:00.1 (driver snd_hda_intel), and a group can only"
            " be passed on as a whole: bind those to vfio-pci as well",
        ),
        (without_iommu, "has no IOMMU, so its DMA could not be kept to the guest's memory: switch"),
        (group_not_viable, "shares IOMMU group 7 with devices that the host uses: bind all in"),
        (without_remapping, "`modprobe vfio_iommu_type1 allow_unsafe_interrupts=1`"),
        (without_type1, "has no IOMMU of type 1: `modprobe vfio_iommu_type1`, as root"),
        (without_group_file, "/vfio/7: `modprobe vfio-pci`, as root"),
        (without_vfio, "/vfio/vfio: `modprobe vfio-pci`, as root"),
        (noiommu, "without IOMMU, where its DMA reaches all of the host: switch the IOMMU on"),
        (not_pci, "is not a PCI device, and no other can be passed on"),
    ],
)
def test_bad_devices_are_refused_with_the_remedy(
    host: FakeHost, prepare: Callable[[FakeHost], None], words: str
) -> None:
    prepare(host)
    for device in host.devices.values():
        os.close(device.open())
    before = open_fds()

    with pytest.raises(HostError) as raised:
        open_devices(host, NAME)

    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert open_fds() == before


def test_device_in_use_is_named(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    host.add(FakePciDevice(NAME))
    real = os.open

    def busy(path: object, flags: int) -> int:
        if str(path).endswith("/vfio/7"):
            raise OSError(16, "Device or resource busy")
        return real(str(path), flags)

    monkeypatch.setattr(os, "open", busy)
    with pytest.raises(
        HostError, match=r"in use by another process: end it \(`fuser -v /dev/vfio/7"
    ):
        open_devices(host, NAME)


def test_file_of_another_user_is_refused_with_the_remedy(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.add(FakePciDevice(NAME))

    def refuse(path: object, flags: int) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(HostError, match=r"/vfio/7 may not be opened by this user: `chown"):
        open_devices(host, NAME)


def test_iommufd_wants_a_character_device(host: FakeHost) -> None:
    host.add(FakePciDevice(NAME))
    with pytest.raises(
        HostError, match=r"has no /.*/iommu: `modprobe iommufd`, or use iommufd=off"
    ):
        open_devices(host, NAME, iommufd=True)


def test_mediated_device_is_named_by_its_path(host: FakeHost) -> None:
    host.add(FakePciDevice("83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"), driver="nvidia-vgpu-vfio")
    path = host.sysfs / "devices/pci0000:00/83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
    with HostDevices([by_path(str(path))], dev=host.dev) as opened:
        assert opened.devices[0].name == "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"


def test_other_directories_are_no_devices(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="is no device's directory in sysfs"):
        by_path(str(tmp_path))


def test_bridges_in_a_group_do_not_matter(host: FakeHost) -> None:
    host.add(FakePciDevice(NAME))
    host.add(FakePciDevice("0000:00:1c.0"), driver="pcieport")
    host.add(FakePciDevice("0000:01:00.1"), driver="vfio-pci")

    assert Place(NAME, host.sysfs / "devices/pci0000:00" / NAME).neighbours() == []
    open_devices(host, NAME).close()


def test_iommufd_is_taken_where_there_are_no_groups(host: FakeHost) -> None:
    host.container.windows = ((0x1000, 0xFFFF), (0x2_0000, (1 << 48) - 1))
    host.add(FakePciDevice(NAME))
    host.offer_iommufd(groups=False)
    with open_devices(host, NAME) as opened:
        assert opened.way == "iommufd"
        assert opened.files == [opened.devices[0].fd]
        assert host.attached == [NAME]
        assert opened.container.limit is None
        assert opened.container.windows == host.container.windows
        assert opened.container.page_sizes == 4096
        opened.container.map(0x10_0000, 0x7000_0000, 0x4000)
        assert host.container.translate(0x10_1000) == 0x7000_1000
        opened.container.unmap(0x10_0000, 0x4000)
        assert not host.container.mappings


def test_groups_are_preferred_unless_iommufd_is_asked_for(host: FakeHost) -> None:
    host.add(FakePciDevice(NAME))
    host.offer_iommufd()

    with open_devices(host, NAME) as opened:
        assert opened.way == "group"
    with open_devices(host, NAME, iommufd=True) as opened:
        assert opened.way == "iommufd"


def test_many_windows_of_iommufd_are_all_learnt(host: FakeHost) -> None:
    host.container.windows = tuple((n << 20, (n << 20) + 0xFFFF) for n in range(40))
    host.add(FakePciDevice(NAME))
    host.offer_iommufd()

    with open_devices(host, NAME, iommufd=True) as opened:
        assert opened.container.windows == host.container.windows


def test_descriptors_of_iommufd_are_given_back(host: FakeHost) -> None:
    host.add(FakePciDevice(NAME))
    host.offer_iommufd()
    before = open_fds()
    open_devices(host, NAME, iommufd=True).close()

    assert open_fds() == before


@pytest.mark.parametrize("iommufd", [False, True])
def test_kvm_is_told_before_a_device_is_opened(host: FakeHost, iommufd: bool) -> None:
    """Some mediated devices do not open without."""
    device = host.add(FakePciDevice(NAME))
    host.offer_iommufd()
    places = [by_address(NAME, host.sysfs)]
    told: list[tuple[int, bool]] = []

    def show(fd: int) -> None:
        told.append((fd, device.bound))

    with HostDevices(places, iommufd=iommufd, show=show, dev=host.dev) as opened:
        assert told == [(opened.files[0], False)]


@pytest.mark.parametrize("iommufd", [False, True])
def test_kvm_that_refuses_leaves_nothing_open(host: FakeHost, iommufd: bool) -> None:
    host.add(FakePciDevice(NAME))
    host.offer_iommufd()
    places = [by_address(NAME, host.sysfs)]
    before = open_fds()

    def show(fd: int) -> None:
        raise HostError("cannot connect KVM and VFIO")

    with pytest.raises(HostError, match="cannot connect"):
        HostDevices(places, iommufd=iommufd, show=show, dev=host.dev)
    assert open_fds() == before
