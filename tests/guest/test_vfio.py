"""Devices of the host in a guest whose memory comes and goes: DMA reaches what is plugged, no more.

Their lab has edu and an NVMe disk (scripts/test); edu uses memory of vmem0, which Linux does not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kexec
import pytest
from harness import Guest
from passed_on import EDU, KERNEL, NVME, RESULT, SCRATCH, Edu, host_log

pytestmark = pytest.mark.vfio

MIB = 1 << 20
GIB = 1 << 30
BLOCK = 2 * MIB
VMEM0 = 4 * GIB

LOAD_SECONDS = float(os.environ.get("MINIVMM_DMA_LOAD_SECONDS", "8"))
"""How long a guest grows and shrinks under DMA load."""

PASSED_ON = (
    *("--device", f"vfio-pci,id=edu0,host={EDU}"),
    *("--device", f"virtio-mem-pci,id=vmem0,size=2G,block-size=2M,memaddr={VMEM0:#x}"),
)
OPTIONS = (
    *("-k", KERNEL, "-m", "512M", "--online", "offline", *PASSED_ON),
    *("--device", f"vfio-pci,id=nvme0,host={NVME}"),
    *("--device", "virtio-mem-pci,id=vmem1,size=1G,block-size=2M"),
)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """It can start another kernel."""
    for address in (EDU, NVME):
        driver = Path(f"/sys/bus/pci/devices/{address}/driver")
        if not driver.exists() or driver.resolve().name != "vfio-pci":
            pytest.fail(f"no device {address} bound to vfio-pci: run these by scripts/test")
    initrd = tmp_path_factory.mktemp("initrd") / "initrd"
    kexec.write_initrd(initrd, KERNEL)
    with Guest(*OPTIONS, "--initrd", str(initrd)) as started:
        yield started


@pytest.fixture(scope="module")
def edu(guest: Guest) -> Edu:
    return Edu(guest)


def dma(guest: Guest) -> dict[str, Any]:
    """What the machine says about its DMA mappings."""
    found: dict[str, Any] = guest.qmp.execute("x-minivmm-inspect")["dma"]
    return found


def faults(address: int) -> list[str]:
    """What the host's IOMMU reported about `address`."""
    return [line for line in host_log() if f"{address:#x}" in line and "fault" in line]


def test_boot_memory_is_one_mapping(guest: Guest) -> None:
    assert dma(guest)["count"] == 1
    assert dma(guest)["pinned"] == 512 * MIB


def test_a_device_writes_plugged_memory_and_reads_it_back(guest: Guest, edu: Edu) -> None:
    guest.resize(vmem0=256 * MIB)
    target = VMEM0 + 200 * MIB

    assert edu.keeps(target)

    assert not faults(target)
    assert dma(guest)["count"] == 1 + 256 * MIB // BLOCK
    assert dma(guest)["pinned"] == (512 + 256) * MIB


def test_unplugged_memory_is_out_of_the_devices_reach(guest: Guest, edu: Edu) -> None:
    guest.resize(vmem0=256 * MIB)
    target = VMEM0 + 2 * MIB
    guest.resize(vmem0=0)
    assert dma(guest)["count"] == 1
    assert guest.device()["resident"] == 0

    # Linux reports ten faults, and no more for 5 s; a transfer makes one for every 4 bytes.
    edu.shell(f"load {SCRATCH}; store {target}; sleep 6; load {target + 0x1000}")

    guest.wait_until(lambda: bool(faults(target)), "report of the write")
    guest.wait_until(lambda: bool(faults(target + 0x1000)), "report of the read")
    assert guest.device()["resident"] == 0
    guest.resize(vmem0=256 * MIB)
    assert edu.keeps(target)


def test_a_disk_transfers_to_and_from_plugged_memory(guest: Guest) -> None:
    """By its stock driver. Memory of processes is movable, and vmem1's is taken first then."""
    guest.wait_until(lambda: guest.run("test", "-b", "/dev/nvme0n1").status == 0, "disk")
    guest.shell("echo online_movable > /sys/devices/system/memory/auto_online_blocks")
    guest.resize(vmem1=512 * MIB)

    first, second = guest.shell(
        "dd if=/dev/urandom of=/tmp/content bs=1M count=16 2>/dev/null; md5sum < /tmp/content;"
        "dd if=/tmp/content of=/dev/nvme0n1 bs=1M oflag=direct 2>/dev/null;"
        "dd if=/dev/nvme0n1 bs=1M count=16 iflag=direct 2>/dev/null | md5sum"
    ).splitlines()

    assert first == second
    assert guest.device("vmem1")["resident"] == 512 * MIB, "pinned, all of it"


def test_nothing_is_lost_while_memory_grows_and_shrinks_under_load(guest: Guest, edu: Edu) -> None:
    """edu copies through a block of vmem0, the disk to pages that move between vmem1 and others."""
    guest.resize(vmem0=256 * MIB, vmem1=512 * MIB)
    faulted = len([line for line in host_log() if "fault" in line])
    start_loads(guest, edu, VMEM0 + 64 * MIB)
    rounds = 0
    deadline = time.monotonic() + LOAD_SECONDS
    while time.monotonic() < deadline:
        guest.resize(vmem1=768 * MIB)
        guest.resize(vmem1=256 * MIB)
        rounds += 1
    guest.shell("touch /tmp/stop")
    guest.wait_until(
        lambda: guest.run("sh", "-c", "ls /tmp/edu.done /tmp/disk.done").status == 0, "end of loads"
    )

    copies, reads = (int(guest.shell(f"cat /tmp/{name}.count")) for name in ("edu", "disk"))
    print(f"{rounds} rounds, {copies} copies by edu, {reads} MiB read from the disk")
    assert guest.run("cat", "/tmp/bad").status != 0, guest.shell("cat /tmp/bad")
    assert rounds >= 1 and copies >= 3 and reads >= 3
    assert len([line for line in host_log() if "fault" in line]) == faulted
    plugged = sum(guest.plugged().values())
    assert dma(guest)["count"] == 1 + plugged // BLOCK
    assert dma(guest)["pinned"] == 512 * MIB + plugged


def start_loads(guest: Guest, edu: Edu, address: int) -> None:
    """Two loops in the guest, until /tmp/stop exists; what is wrong is written to /tmp/bad."""
    copying = edu.preamble + (
        "n=0\n"
        "while [ ! -e /tmp/stop ]; do\n"
        f"  fill {SCRATCH}; load {SCRATCH}; store {address}; load {address}; store {RESULT}\n"
        f'  [ "$(sum {SCRATCH})" = "$(sum {RESULT})" ] || echo "edu: copy $n" >> /tmp/bad\n'
        "  n=$((n + 1)); echo $n > /tmp/edu.count\n"
        "done; touch /tmp/edu.done\n"
    )
    reading = (
        "wanted=$(md5sum < /tmp/content); n=0\n"
        "while [ ! -e /tmp/stop ]; do\n"
        '  [ "$(dd if=/dev/nvme0n1 bs=1M count=16 iflag=direct 2>/dev/null | md5sum)" ='
        ' "$wanted" ] ||'
        ' echo "disk: $n" >> /tmp/bad\n'
        "  n=$((n + 16)); echo $n > /tmp/disk.count\n"
        "done; touch /tmp/disk.done\n"
    )
    for name, script in (("edu", copying), ("disk", reading)):
        guest.run("sh", "-c", f"cat > /tmp/{name}.sh", stdin=script.encode())
        guest.shell(f"setsid sh /tmp/{name}.sh < /dev/null > /dev/null 2>&1 &")


def test_a_kernel_started_by_another_takes_the_devices_over(guest: Guest) -> None:
    """Memory stays mapped until that kernel has unplugged it: the host cannot tell the two."""
    guest.resize(vmem0=64 * MIB, vmem1=256 * MIB)
    unplugged = guest.device("vmem1")["answers"].get("UNPLUG_ALL", {}).get("ACK", 0)
    kexec.load(guest)
    kexec.start(guest)
    kexec.await_next(guest)

    guest.resize(vmem0=128 * MIB, vmem1=0)

    assert guest.device("vmem1")["answers"]["UNPLUG_ALL"]["ACK"] == unplugged + 1
    assert dma(guest)["count"] == 1 + 128 * MIB // BLOCK
    assert Edu(guest).keeps(VMEM0 + 64 * MIB)
    assert guest.run("test", "-b", "/dev/nvme0n1").status == 0


def test_a_guest_that_reboots_has_its_devices_again(guest: Guest) -> None:
    guest.request(vmem0=128 * MIB, vmem1=0)
    guest.shell("(sleep 0.5; reboot -f) &")
    while (event := guest.qmp.event(30)) and event["event"] != "RESET":
        pass
    assert event is not None
    assert guest.run("true", timeout=120).status == 0

    guest.resize(vmem0=128 * MIB, vmem1=0)

    assert dma(guest)["count"] == 1 + 128 * MIB // BLOCK
    assert Edu(guest).keeps(VMEM0)
    assert guest.run("test", "-b", "/dev/nvme0n1").status == 0


def test_a_killed_machine_leaves_its_devices_usable(guest: Guest) -> None:
    guest.kill()

    with Guest("-k", KERNEL, "-m", "256M", "--online", "offline", *PASSED_ON) as other:
        other.resize(vmem0=128 * MIB)
        assert Edu(other).keeps(VMEM0)
