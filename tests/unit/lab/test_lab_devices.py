"""Devices of a lab that are for passing on: QEMU's words, and what the initramfs does with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from minivmm.errors import ImageError, UsageError
from minivmm.lab import machine
from minivmm.lab.devices import MODULES, attach
from minivmm.lab.image import build_image


def test_devices_come_behind_an_iommu_from_slot_10_on() -> None:
    attached = attach(["edu", "nvme,serial=1,drive=d0"])

    assert attached.words == (
        *("-device", "virtio-iommu-pci"),
        *("-device", "edu,bus=pcie.0,addr=0x10"),
        *("-device", "nvme,serial=1,drive=d0,bus=pcie.0,addr=0x11"),
    )
    assert attached.addresses == ("0000:00:10.0", "0000:00:11.0")


def test_lab_without_devices_has_no_iommu() -> None:
    assert attach([]).words == ()


@pytest.mark.parametrize("chosen", ["addr=3", "bus=pcie.0"])
def test_place_is_the_labs_choice(chosen: str) -> None:
    with pytest.raises(UsageError, match=r"leave out .*=, the lab chooses it"):
        attach([f"edu,{chosen}"])


def test_too_many_devices_are_refused() -> None:
    attach(["edu"] * 15)
    with pytest.raises(UsageError, match="16 devices for the lab: at most 15 are possible"):
        attach(["edu"] * 16)


def test_more_options_of_qemu_come_last() -> None:
    command = machine.qemu_command(
        "qemu",
        kernel=Path("/k"),
        initrd="/i",
        memory=1 << 30,
        cpus=1,
        files=7,
        wire=9,
        extra=("x",),
    )

    assert command[-1] == "x"


def test_image_knows_which_devices_to_bind() -> None:
    image = build_image("6.12.1", None, addresses=("0000:00:10.0", "0000:00:11.0"))

    assert b"DEVICES='0000:00:10.0 0000:00:11.0'\n" in image


def test_image_without_devices_binds_none() -> None:
    assert b"DEVICES=''\n" in build_image("6.12.1", None)


def test_kernel_without_vfio_is_refused(tmp_path: Path) -> None:
    (tmp_path / "modules.builtin").write_text("kernel/arch/x86/kvm/kvm-amd.ko\n")

    with pytest.raises(ImageError, match=r"no module virtio_iommu in .* VFIO and virtio-iommu"):
        build_image("6.12.1", tmp_path, also=MODULES)
