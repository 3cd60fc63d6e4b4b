"""Stock kernels boot in every form, and `boot -- CMD` is a faithful way to run a command."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from backports import zstd
from harness import Guest, minivmm

from minivmm.guest.build import build_initramfs
from minivmm.guest.kernels import find


def test_command_output_is_exact_and_status_is_its_own(kernel: str) -> None:
    release = find(kernel).release

    words = [sys.executable, "-m", "minivmm", "boot", "-k", kernel, "--accel", "kvm"]
    done = subprocess.run([*words, "--", "uname", "-r"], capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (0, release + "\n"), done.stderr


def test_failing_command_gives_its_status() -> None:
    done = minivmm("boot", "--accel", "kvm", "--", "sh", "-c", "echo oops >&2; exit 7")

    assert (done.returncode, done.stdout, done.stderr) == (7, "", "oops\n")


@pytest.mark.parametrize("cpus", [2, 4])
def test_all_cpus_come_up(kernel: str, cpus: int) -> None:
    with Guest("-k", kernel, "-p", str(cpus)) as guest:
        assert guest.shell("nproc") == str(cpus)
        assert guest.shell("cat /sys/devices/system/cpu/online") == f"0-{cpus - 1}"


def test_vmlinux_boots_by_pvh(tmp_path: Path) -> None:
    image = find("6.12").image.read_bytes()
    sectors, offset, length = (
        image[0x1F1],
        int.from_bytes(image[0x248:0x24C], "little"),
        int.from_bytes(image[0x24C:0x250], "little"),
    )
    start = (sectors + 1) * 512 + offset
    vmlinux = tmp_path / "vmlinux"
    packed = image[start : start + length - 4]  # the last four bytes are the unpacked size
    vmlinux.write_bytes(zstd.ZstdDecompressor().decompress(packed))
    modules = str(find("6.12").modules)

    words = ["boot", str(vmlinux), "--modules", modules, "--accel", "kvm"]
    done = minivmm(*words, "--", "sh", "-c", "uname -r; lsmod | grep -c virtio_mem")

    assert done.stdout.split() == [find("6.12").release, "1"], done.stderr
    assert done.returncode == 0


def test_memory_above_4_gib_and_users_initrd(tmp_path: Path) -> None:
    kernel = find("6.12")
    initrd = tmp_path / "initrd"
    initrd.write_bytes(build_initramfs(kernel.release, kernel.modules))

    with Guest("-k", "6.12", "-m", "4G", "--initrd", str(initrd)) as guest:
        assert guest.memory_total() > 3.7 * (1 << 30)
        ranges = guest.shell("grep 'System RAM' /proc/iomem")
        assert re.search(r"^100000000-13fffffff", ranges, re.MULTILINE)


def test_region_is_in_no_firmware_map() -> None:
    with Guest("-k", "6.12", "--device", "virtio-mem-pci,size=4G") as guest:
        ends = guest.shell("cat /sys/firmware/memmap/*/end").split()
        region = guest.device()["memaddr"]
        nodes = guest.shell("dmesg | grep -i 'SRAT: Node'")

    assert max(int(end, 16) for end in ends) < region
    assert f"{region:#010x}"[2:] in nodes and "hotplug" in nodes
