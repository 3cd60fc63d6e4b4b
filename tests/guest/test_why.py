"""`why`, `kick` and `audit` with real drivers: one guest that has several things wrong with it.

Its boot leaves memory offline, its CPU has 36 address bits, and its devices are

    vmem0    in order, but nobody onlines what it plugs
    small    of less than one memory block of Linux
    far      where the CPU cannot address it
    flaky    refused by the host as long as a file exists
"""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Guest, minivmm

from minivmm.devices.virtio_mem.shortage import Shortage
from minivmm.memory.guest import GuestMemory, Slot
from minivmm.memory.region import Region

MIB = 1 << 20
GIB = 1 << 30
FAR = 1 << 36
LINUX_RETRY = 50.0
"""Seconds that Linux' driver waits after BUSY, at least (virtio_mem.c)."""

MEMORY = "/sys/devices/system/memory"
ONLINE_ALL = (
    f"echo online_movable > {MEMORY}/auto_online_blocks; for b in {MEMORY}/memory*/state; do"
    " read -r s < $b; [ $s = offline ] && echo online_movable > $b; done; true"
)


class Host:
    """Makes the host of a guest that is booted inside `patched` fail at will."""

    def __init__(self, directory: Path) -> None:
        self.refuses = directory / "refuses"
        self.is_full = directory / "is-full"

    def patched(self, patch: pytest.MonkeyPatch) -> None:
        refuses, is_full, plug = self.refuses, self.is_full, GuestMemory.plug

        def refusing(memory: GuestMemory, slot: Slot, offset: int, length: int) -> None:
            if slot.name == "flaky" and refuses.exists():
                raise OSError(errno.ENOMEM, "the test refuses")
            plug(memory, slot, offset, length)

        patch.setattr(GuestMemory, "plug", refusing)
        patch.setattr(Region, "room_for", lambda region, length: not is_full.exists())
        # Without the device's own reminder only the driver's timer or a kick ends its wait.
        patch.setattr(Shortage, "_look", lambda shortage: None)


@pytest.fixture(scope="module")
def host(kernel: str, tmp_path_factory: pytest.TempPathFactory) -> Host:
    return Host(tmp_path_factory.mktemp(f"host-{kernel}"))


@pytest.fixture(scope="module")
def guest(kernel: str, host: Host) -> Iterator[Guest]:
    options = ["-k", kernel, "-m", "320M", "--phys-bits", "36", "--online", "offline"]
    for device in (
        "id=vmem0,size=4G",
        "id=small,size=64M,requested-size=64M",
        f"id=far,size=1G,memaddr={FAR:#x}",
        "id=flaky,size=2G",
    ):
        options += ["--device", f"virtio-mem-pci,{device}"]
    with pytest.MonkeyPatch.context() as patch:
        host.patched(patch)
        started = Guest(*options)
        started.__enter__()  # the boot process is forked here, with the patches
    try:
        yield started
    finally:
        started.__exit__(None, None, None)


def why(guest: Guest, device: str, *options: str) -> dict[str, Any]:
    done = minivmm("why", guest.name, "--device", device, "--json", *options)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["memory-devices"][0]
    print(json.dumps(found, indent=1))
    return found


def plugged(guest: Guest, device: str) -> int:
    rows = guest.info()["memory-devices"]
    return int(next(row["size"] for row in rows if row["id"] == device))


def request(guest: Guest, device: str, size: int) -> None:
    guest.qmp.execute("qom-set", path=device, property="requested-size", value=size)


def test_a_region_beyond_the_address_bits_is_refused_by_linux_and_named(guest: Guest) -> None:
    found = why(guest, "far")

    assert "minivmm: far: region 0x1000000000-0x103fffffff ends beyond" in guest.output()
    assert "36 bits physical" in guest.shell("grep -m1 'address sizes' /proc/cpuinfo")
    assert (found["kind"], found["certain"]) == ("not-addressable", True)
    assert "all of the region is beyond the 36 address bits" in found["summary"]
    assert any("could not reserve device region" in line for line in found["evidence"])


def test_a_region_smaller_than_a_memory_block_never_plugs(guest: Guest) -> None:
    found = why(guest, "small")

    assert (found["kind"], found["certain"]) == ("no-whole-block", True)
    assert "128M" in found["remedy"]
    assert plugged(guest, "small") == 0


def test_an_unbound_driver_is_named_until_it_is_bound_again(guest: Guest) -> None:
    address = why(guest, "small")["pci-address"]
    name = guest.shell(f"cd /sys/bus/pci/devices/{address} && echo virtio*")

    guest.shell(f"echo {name} > /sys/bus/virtio/drivers/virtio_mem/unbind")
    unbound, outside = why(guest, "small"), why(guest, "small", "--no-agent")
    guest.shell(f"echo {name} > /sys/bus/virtio/drivers/virtio_mem/bind")

    assert unbound["kind"] == outside["kind"] == "no-driver"
    assert "virtio_mem/bind" in unbound["remedy"]
    assert why(guest, "small")["kind"] == "no-whole-block"


def test_memory_that_nobody_onlines_stops_at_1_gib_and_goes_on_when_somebody_does(
    guest: Guest,
) -> None:
    resize = ("resize", guest.name, "1152M", "--device", "vmem0", "--wait=15s")
    stalled = minivmm(*resize)
    found, outside = why(guest, "vmem0"), why(guest, "vmem0", "--no-agent")

    assert stalled.returncode == 4, stalled.stderr
    assert "no change for 6 s: not-onlined: " in stalled.stderr
    assert "1G of 1152M after 15 s: not-onlined: " in stalled.stderr
    assert plugged(guest, "vmem0") == GIB
    assert (found["kind"], found["certain"]) == ("not-onlined", True)
    assert "8 memory blocks of 128M are offline in the guest" in found["evidence"]
    assert (outside["kind"], outside["certain"]) == ("not-onlined", False)

    guest.shell(ONLINE_ALL)
    guest.wait_until(lambda: plugged(guest, "vmem0") == 1152 * MIB, "the rest of vmem0")
    assert why(guest, "vmem0")["kind"] == "done"


def test_the_audit_finds_host_memory_only_behind_plugged_blocks(guest: Guest) -> None:
    done = minivmm("audit", guest.name, "--json")

    rows = {row["id"]: row for row in json.loads(done.stdout)["memory-devices"]}
    assert done.returncode == 0, done.stderr
    assert rows["vmem0"]["resident-plugged"] > 0
    assert all(row["resident-unplugged"] == 0 for row in rows.values())


BALLAST = (
    "echo 1000 >/proc/$$/oom_score_adj;"
    ' x=$(dd if=/dev/zero bs=1M count=24 | tr "\\0" x); sleep 1000'
)
"""Shell script: memory that a guest without any left gives up first, rather than its agent."""


def test_memory_in_use_is_unmovable_and_a_kick_after_freeing_it_saves_the_wait(
    guest: Guest,
) -> None:
    guest.shell(
        "mount -t tmpfs -o size=420m none /mnt && dd if=/dev/zero of=/mnt/x bs=1M count=400"
    )
    guest.shell(f"sh -c '{BALLAST}' </dev/null >/dev/null 2>&1 &")
    request(guest, "vmem0", 0)
    guest.wait_until(lambda: why(guest, "vmem0")["kind"] == "unmovable", "being stuck")
    found = why(guest, "vmem0")
    guest.shell("umount /mnt")
    waiting = plugged(guest, "vmem0")
    assert minivmm("kick", guest.name, "--device", "vmem0").returncode == 0
    began = time.monotonic()
    guest.wait_until(lambda: plugged(guest, "vmem0") == 0, "an empty vmem0")
    took = time.monotonic() - began

    assert 0 < waiting < 1152 * MIB
    assert found["kind"] == "unmovable"
    assert "kick" in found["remedy"]
    assert took < LINUX_RETRY / 2


def test_a_kick_ends_the_wait_after_busy(guest: Guest, host: Host) -> None:
    host.refuses.touch()
    host.is_full.touch()
    request(guest, "flaky", 128 * MIB)
    guest.wait_until(lambda: why(guest, "flaky")["kind"] == "host-shortage", "shortage")
    full = why(guest, "flaky", "--no-agent")
    host.is_full.unlink()
    waiting = why(guest, "flaky")
    host.refuses.unlink()
    time.sleep(3)  # the host would do it now, but the driver does not ask
    before = plugged(guest, "flaky")
    still = why(guest, "flaky")

    kicked = minivmm("kick", guest.name, "--device", "flaky", "--json")
    began = time.monotonic()
    guest.wait_until(lambda: plugged(guest, "flaky") == 128 * MIB, "flaky to be plugged")
    took = time.monotonic() - began

    assert full["kind"] == "host-shortage"
    assert waiting["kind"] == still["kind"] == "retry-wait"
    assert any("the test refuses" in line for line in still["evidence"])
    assert before == 0
    assert json.loads(kicked.stdout)["memory-devices"] == [{"id": "flaky", "sent": True}]
    assert took < LINUX_RETRY / 4
    assert why(guest, "flaky")["kind"] == "done"


def test_a_module_that_is_not_loaded_is_named(guest: Guest) -> None:
    for device in ("vmem0", "flaky"):
        request(guest, device, 0)
        guest.wait_until(lambda: plugged(guest, device) == 0, f"an empty {device}")  # noqa: B023
    guest.shell("rmmod virtio_mem")

    found = why(guest, "vmem0")
    kicked = minivmm("kick", guest.name)
    shown = minivmm("why", guest.name).stdout

    assert found["kind"] == "no-driver"
    assert "modprobe virtio_mem" in found["remedy"]
    assert kicked.returncode == 1
    assert "vmem0 has no driver to kick" in kicked.stderr
    assert shown.count(": no-driver\n") == 3
    assert "far: not-addressable\n" in shown
