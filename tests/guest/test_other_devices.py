"""Disks, a memory balloon and an entropy device, as stock kernels use them; one guest for all.

A virtio-mem device is beside them. The tests rely on nothing that others do.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from harness import Guest

from minivmm.units import KIB, MIB

BOOT = 512 * MIB
DISK = 64 * MIB


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw disk with an empty ext4 on it."""
    path = tmp_path_factory.mktemp("disks") / "disk.img"
    with path.open("wb") as file:
        file.truncate(DISK)
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-F", str(path)], check=True)
    return path


@pytest.fixture(scope="module")
def guest(kernel: str, disk: Path) -> Iterator[Guest]:
    locked = disk.with_name("locked.img")
    locked.write_bytes(b"minivmm " * (MIB // 8))
    words = ["-m", "512M", "--device", "virtio-mem-pci,id=vmem0,size=1G,block-size=2M"]
    words += ["--device", "virtio-balloon-pci,free-page-reporting=on"]
    words += ["--device", "virtio-rng-pci"]
    words += ["--drive", f"file={disk},serial=MINI-1"]
    words += ["--drive", f"file={locked},readonly=on,packed=on"]
    with Guest("-k", kernel, *words) as started:
        yield started


def allocated(path: Path) -> int:
    """Bytes of the file that are no holes; what stat() says is old news in the lab."""
    total, end = 0, path.stat().st_size
    with path.open("rb") as file, suppress(OSError):  # ENXIO: no data after the last hole
        hole = 0
        while hole < end:
            start = os.lseek(file.fileno(), hole, os.SEEK_DATA)
            hole = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            total += hole - start
    return total


def model(guest: Guest, identifier: str) -> dict[str, Any]:
    """What the device model says of itself."""
    devices = guest.qmp.execute("x-minivmm-inspect")["board"]["devices"]
    found: dict[str, Any] = devices[identifier]["model"]
    return found


def anonymous(guest: Guest) -> int:
    """Bytes of host memory behind the guest."""
    for line in Path(f"/proc/{guest.process.pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * KIB
    raise AssertionError("no RssAnon")


def balloon(guest: Guest, left: int) -> None:
    """Set the balloon's target, and wait until the guest has done it."""
    guest.qmp.execute("balloon", value=left)
    guest.wait_until(
        lambda: bool(guest.qmp.execute("query-balloon")["actual"] == left), f"{left} bytes left"
    )


# -- disks -----------------------------------------------------------------------------------------


def test_a_disk_is_what_it_was_said_to_be(guest: Guest) -> None:
    shown = guest.shell(
        "cd /sys/block; cat vda/size vda/ro vda/queue/write_cache vdb/ro vda/serial;"
        " dd if=/dev/vdb bs=7 count=1 2>/dev/null"
    )

    assert shown.splitlines() == [str(DISK // 512), "0", "write back", "1", "MINI-1minivmm"]
    assert guest.run("dd", "if=/dev/zero", "of=/dev/vdb", "count=1").status != 0


def test_the_guest_switches_the_cache_off_and_on(guest: Guest) -> None:
    at = "/sys/block/vda/cache_type"

    guest.shell(f"echo 'write through' >{at}")
    off = model(guest, "disk0")["writeback"]
    guest.shell(f"echo 'write back' >{at}")

    assert (off, model(guest, "disk0")["writeback"]) == (False, True)


def test_discarded_blocks_are_freed_and_read_zeroes(guest: Guest, disk: Path) -> None:
    guest.shell(
        "mount /dev/vda /mnt; dd if=/dev/urandom of=/mnt/random bs=1M count=16 2>/dev/null;"
        " umount /mnt"
    )
    full = allocated(disk)
    guest.shell("mount /dev/vda /mnt; rm /mnt/random; sync; fstrim /mnt; umount /mnt")

    assert allocated(disk) < full - 12 * MIB


def test_a_file_system_survives_a_reboot(guest: Guest) -> None:
    guest.shell(
        "mount /dev/vda /mnt; dd if=/dev/urandom of=/mnt/file bs=1M count=8 2>/dev/null; sync"
    )
    digest = guest.shell("md5sum </mnt/file")
    first = guest.shell("cat /proc/sys/kernel/random/boot_id")

    guest.run("sh", "-c", "(sleep 0.3; reboot -f) >/dev/null 2>&1 &")
    guest.wait_until(lambda: not guest.info()["agent"]["ready"], "end of the kernel")
    assert guest.run("true", timeout=120).status == 0
    guest.shell("mount -o ro /dev/vda /mnt")

    assert guest.shell("cat /proc/sys/kernel/random/boot_id") != first
    assert guest.shell("md5sum </mnt/file") == digest
    assert guest.shell("umount /mnt; dmesg | grep -ci -e 'I/O error' -e corrupt || true") == "0"
    assert model(guest, "disk0")["failures"] == 0


# -- randomness ------------------------------------------------------------------------------------


def test_the_random_device_feeds_the_guest(guest: Guest) -> None:
    before = model(guest, "rng0")["given"]

    assert guest.shell("cat /sys/class/misc/hw_random/rng_current").startswith("virtio_rng")
    first, second = (guest.run("head", "-c", "64", "/dev/hwrng").stdout for _ in range(2))

    assert len(first) == len(second) == 64
    assert first != second
    assert model(guest, "rng0")["given"] >= before + 128


# -- the balloon -----------------------------------------------------------------------------------


def test_the_balloon_inflates_and_deflates(guest: Guest) -> None:
    total = guest.memory_total()
    freed = model(guest, "balloon0")["memory"]["freed"]

    balloon(guest, BOOT - 64 * MIB)
    small = guest.memory_total()
    gained = model(guest, "balloon0")["memory"]["freed"] - freed
    balloon(guest, BOOT)

    assert total - small == 64 * MIB
    assert gained >= 64 * MIB
    assert guest.memory_total() == total
    guest.shell("dd if=/dev/zero of=/tmp/big bs=1M count=96 2>/dev/null; rm /tmp/big")


def test_statistics_of_the_guest(guest: Guest) -> None:
    at = {"path": "/machine/peripheral/balloon0"}
    guest.qmp.execute("qom-set", **at, property="guest-stats-polling-interval", value=1)
    before = guest.qmp.execute("qom-get", **at, property="guest-stats")["last-update"]

    def newer() -> bool:
        found = guest.qmp.execute("qom-get", **at, property="guest-stats")
        return bool(found["last-update"] > before)

    guest.wait_until(newer, "newer statistics")
    guest.qmp.execute("qom-set", **at, property="guest-stats-polling-interval", value=0)
    stats = guest.qmp.execute("qom-get", **at, property="guest-stats")["stats"]

    assert stats["stat-total-memory"] == guest.memory_total()
    assert 0 < stats["stat-free-memory"] < stats["stat-total-memory"]


def test_free_pages_are_reported_and_given_back(guest: Guest) -> None:
    guest.shell("dd if=/dev/zero of=/tmp/big bs=1M count=128 2>/dev/null")
    used = anonymous(guest)
    guest.shell("rm /tmp/big")

    guest.wait_until(lambda: anonymous(guest) < used - 64 * MIB, "less host memory", seconds=60)


def test_pages_of_plugged_memory_that_are_in_the_balloon_do_not_block_its_unplugging(
    guest: Guest,
) -> None:
    """Linux puts movable pages into the balloon, and other ones in their place when it has to."""
    guest.resize(128 * MIB)
    guest.wait_until(lambda: guest.memory_total() > BOOT, "128 MiB more, onlined")
    balloon(guest, BOOT - 4 * MIB)

    guest.resize(0)
    left = guest.qmp.execute("query-balloon")["actual"]
    balloon(guest, BOOT)

    assert left == BOOT - 4 * MIB
    assert guest.device()["resident"] == 0
    assert guest.device()["intrusions"] == 0
    assert model(guest, "balloon0")["memory"]["refused"] == 0
