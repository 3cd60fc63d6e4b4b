"""Snapshots of real guests: memory, devices and time go on in another process as if nothing was."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import Guest, minivmm

MIB = 1 << 20
GIB = 1 << 30
BOOT = (
    *("-m", "256M", "-a", "init_on_alloc=0"),  # Linux zeroes what it gives away: long, emulated
    *("--device", "virtio-mem-pci,id=vmem0,size=4G,block-size=2M,requested-size=0"),
)
FILL = (
    "mount -t tmpfs none /mnt && dd if=/dev/urandom of=/mnt/x bs=1M count=48 2>/dev/null &&"
    " md5sum /mnt/x"
)
"""Linux takes movable memory for it first, and that is the plugged memory."""


ONLY_6_1 = pytest.mark.parametrize("kernel", ["6.1"], indirect=True, scope="session")
"""Nothing of this is different on other kernels, and that lab has time."""


@dataclass(frozen=True)
class Saved:
    """A snapshot; the checksum of /mnt/x in it; seconds until the guest had been ready."""

    place: Path
    checksum: str
    booted: float


@pytest.fixture(scope="module")
def saved(kernel: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    """A snapshot of a guest with 256 MiB plugged and a file in them."""
    place = tmp_path_factory.mktemp("saved") / "s"
    began = time.monotonic()
    with Guest("-k", kernel, *BOOT) as guest:
        booted = time.monotonic() - began
        guest.resize(256 * MIB)
        checksum = guest.shell(FILL).split()[0]
        done = minivmm("snapshot", guest.name, str(place), "--json")
        assert done.returncode == 0, done
        figures = json.loads(done.stdout)
        assert figures["plugged"] == 512 * MIB
        assert 48 * MIB < figures["written"] < 300 * MIB
        # The guest that was saved runs on.
        assert guest.shell("md5sum /mnt/x").split()[0] == checksum
        guest.resize(128 * MIB)
    yield Saved(place, checksum, booted)


def test_a_restored_guest_has_its_memory_and_its_devices(saved: Saved) -> None:
    assert minivmm("snapshot", "--verify", str(saved.place)).returncode == 0
    began = time.monotonic()
    with Guest("--restore", str(saved.place)) as guest:
        restored = time.monotonic() - began
        print(f"ready after {restored:.1f} s, where booting takes {saved.booted:.1f} s")
        assert restored < saved.booted
        assert guest.plugged() == {"vmem0": 256 * MIB}
        assert guest.shell("md5sum /mnt/x").split()[0] == saved.checksum

        guest.resize(512 * MIB)
        guest.shell("umount /mnt")
        guest.resize(0)

        assert guest.device()["resident"] == 0
        guest.shell("sleep 1")  # timers go on


@ONLY_6_1
def test_two_restored_at_a_time_share_the_snapshots_pages(saved: Saved) -> None:
    words = ("--restore", str(saved.place))
    with Guest(*words) as one, Guest(*words) as two:
        for guest in (one, two):
            assert guest.shell("md5sum /mnt/x").split()[0] == saved.checksum
        assert shared(one) > 48 * MIB
        one.shell("rm /mnt/x")
        assert two.shell("md5sum /mnt/x").split()[0] == saved.checksum


def shared(guest: Guest) -> int:
    """Bytes of the snapshot's file that this guest's process maps and others do, too."""
    total, ours = 0, False
    for line in Path(f"/proc/{guest.process.pid}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            ours = words[-1].endswith("/ram")
        elif ours and words[0] in ("Shared_Clean:", "Shared_Dirty:"):
            total += int(words[1]) * 1024
    return total


@ONLY_6_1
def test_a_resize_completes_wherever_it_was_saved(
    kernel: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    moments = int(request.config.getoption("--moments"))
    dice = random.Random(2007)
    with Guest("-k", kernel, *BOOT) as guest:
        for number in range(moments):
            guest.resize(0)
            guest.request(vmem0=512 * MIB)
            target = 512 * MIB
            if number % 3 == 2:
                guest.resize(target)
                target = 64 * MIB
                guest.request(vmem0=target)
            time.sleep(dice.uniform(0, 1.5))
            place = tmp_path / str(number)
            assert minivmm("snapshot", guest.name, str(place)).returncode == 0
            with Guest("--restore", str(place)) as restored:
                restored.wait_until(
                    lambda: restored.plugged() == {"vmem0": target},  # noqa: B023
                    f"{target:#x} plugged after moment {number}",
                )
                device = restored.device()
                assert device["requested-size"] == target
                assert restored.shell("dmesg | grep -ci 'virtio_mem.*fail' || true") == "0"
