"""A disk of the host in a guest without message-signalled interrupts: its pin, resets, its end.

The lab is that of test_vfio.py, where the disk works by MSI-X.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Guest, minivmm
from passed_on import KERNEL, NVME

pytestmark = pytest.mark.vfio

DRIVERS = Path("/sys/bus/pci/drivers")
READ = "dd if=/dev/nvme0n1 bs=64k count=16 iflag=direct of=/dev/null 2>&1"


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    options = ("-k", KERNEL, "-m", "256M", "-a", "pci=nomsi")
    with Guest(*options, "--device", f"vfio-pci,host={NVME}") as started:
        yield started


def interrupts(guest: Guest) -> int:
    """How many the disk's pin has made."""
    (line,) = guest.shell("grep nvme /proc/interrupts").splitlines()
    assert "IO-APIC" in line
    return int(line.split()[1])


def test_pin_interrupts_as_often_as_it_must(guest: Guest) -> None:
    """Each one is served, and KVM has the device asked again: a lost one would stop it."""
    guest.wait_until(lambda: guest.run("test", "-b", "/dev/nvme0n1").status == 0, "disk")
    before = interrupts(guest)
    guest.shell(READ)

    assert interrupts(guest) >= before + 8


def test_guest_resets_the_function(guest: Guest) -> None:
    guest.shell("echo 1 > $(dirname $(dirname $(realpath /sys/class/nvme/nvme0)))/reset")

    guest.shell(READ)


def test_host_takes_it_away_and_the_guest_runs_on(guest: Guest) -> None:
    node = guest.shell("realpath /sys/class/nvme/nvme0/device").strip()
    try:
        (DRIVERS / "vfio-pci/unbind").write_text(NVME)  # returns when nobody has it any more
    finally:
        Path("/sys/bus/pci/drivers_probe").write_text(NVME)

    assert "the host takes it away: for the guest, it is gone" in guest.output()
    assert guest.shell(f"od -An -tx1 -N4 {node}/config").split() == ["ff"] * 4


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("00:1e.0", "vfio0: this host has no PCI device 0000:00:1e.0: `lspci -D`"),
        ("00:1f.2", "vfio0: 0000:00:1f.2 has no IOMMU"),
    ],
)
def test_bad_devices_are_refused_in_one_line(host: str, words: str) -> None:
    refused = minivmm("boot", "--accel", "kvm", "--device", f"vfio-pci,host={host}", "--", "true")

    assert refused.returncode == 125
    assert words in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_device_of_a_host_driver_is_refused_with_the_remedy() -> None:
    override = Path(f"/sys/bus/pci/devices/{NVME}/driver_override")
    try:
        (DRIVERS / "vfio-pci/unbind").write_text(NVME)
        override.write_text("nvme")
        Path("/sys/bus/pci/drivers_probe").write_text(NVME)
        refused = minivmm(
            "boot", "--accel", "kvm", "--device", f"vfio-pci,host={NVME}", "--", "true"
        )
    finally:
        (DRIVERS / "nvme/unbind").write_text(NVME)
        override.write_text("vfio-pci")
        Path("/sys/bus/pci/drivers_probe").write_text(NVME)

    assert refused.returncode == 125
    assert "is bound to the host's driver nvme: give it to VFIO, as root" in refused.stderr
