"""A guest that touches unplugged memory is named, and treated as `protect=` says.

One guest with four devices. Linux uses vmem0. For the others, user space plays the attacker through
/dev/mem, which Linux allows only where no driver claims the region: their drivers are unbound, and
what vmem1 had plugged by then stays plugged.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from harness import Guest

MIB = 1 << 20
GIB = 1 << 30
BLOCK = 2 * MIB
LINUX_BLOCK = 128 * MIB
DIRECT_MAP = 0xFFFF_8880_0000_0000
"""Where Linux maps all memory, if it does not randomize that (nokaslr, x86/x86_64/mm.rst)."""

EVENT = "X_MINIVMM_UNPLUGGED_ACCESS"
DEVICE = "virtio-mem-pci,size=2G,block-size=2M,requested-size="


@pytest.fixture(scope="module")
def guest(kernel: str) -> Iterator[Guest]:
    options = ["-k", kernel, "-m", "320M", "-p", "2", "-a", "nokaslr"]
    for number, (protect, requested) in enumerate(
        [("report", "192M"), ("report", "128M"), ("stop", "0"), ("kill", "0")]
    ):
        options += ["--device", f"{DEVICE}{requested},id=vmem{number},protect={protect}"]
    with Guest(*options) as started:
        started.wait_until(lambda: device(started, 0)["size"] == 192 * MIB, "plugged vmem0")
        started.wait_until(lambda: device(started, 1)["size"] == 128 * MIB, "plugged vmem1")
        yield started


def device(guest: Guest, number: int) -> dict[str, Any]:
    found: dict[str, Any] = guest.info()["memory-devices"][number]
    return found


def intrusions(guest: Guest, number: int) -> dict[str, Any]:
    tree = guest.qmp.execute("x-minivmm-inspect")
    found: dict[str, Any] = tree["board"]["devices"][f"vmem{number}"]["model"]["intrusions"]
    return found


def memslots(guest: Guest) -> dict[str, int]:
    found: dict[str, int] = guest.qmp.execute("x-minivmm-inspect")["memslots"]
    return found


def release(guest: Guest, number: int) -> int:
    """Unbind the driver of vmemN; returns where its region is."""
    guest.shell(f"echo virtio{number + 1} >/sys/bus/virtio/drivers/virtio_mem/unbind")
    return int(device(guest, number)["memaddr"])


def read(guest: Guest, gpa: int) -> int:
    return int(guest.shell(f"taskset 2 devmem {gpa:#x} 64"), 16)


def write(guest: Guest, gpa: int, value: int) -> None:
    guest.shell(f"taskset 2 devmem {gpa:#x} 64 {value:#x}")


def event(guest: Guest, name: str) -> dict[str, Any]:
    while found := guest.qmp.event(10):
        if found["event"] == name:
            data: dict[str, Any] = found.get("data", {})
            return data
    raise AssertionError(f"no {name}")


def test_memslots_are_few_and_the_guest_behaves(guest: Guest) -> None:
    found = memslots(guest)
    assert found["count"] == 3, "RAM, and a range each of vmem0 and vmem1"
    assert found["covered"] == 2 * GIB
    assert intrusions(guest, 0)["count"] == 0


def test_an_access_among_plugged_blocks_is_found_and_named(guest: Guest) -> None:
    guest.shell("mount -t tmpfs none /mnt && dd if=/dev/urandom of=/mnt/x bs=1M count=24")
    before = guest.shell("md5sum </mnt/x")
    guest.qmp.execute("qom-set", path="vmem1", property="requested-size", value=64 * MIB)
    guest.wait_until(lambda: device(guest, 1)["size"] == 64 * MIB, "shrunk vmem1")
    base = int(device(guest, 1)["memaddr"])
    # Linux forgets a memory block that is partly plugged and offline when its driver goes.
    guest.shell(f"echo offline >/sys/devices/system/memory/memory{base // LINUX_BLOCK}/state")
    release(guest, 1)
    assert device(guest, 1)["size"] == 64 * MIB
    plugged = int(plugged_range(guest)[0], 16)
    write(guest, plugged, 0x1122_3344_5566_7788)
    assert intrusions(guest, 1)["count"] == 0

    assert memslots(guest)["covered"] == 2 * GIB, "the block to be touched has a memslot"

    block = unplugged_block(guest, base)
    write(guest, base + block * BLOCK + 8, 0xDEAD)

    found = event(guest, EVENT)
    assert (found["id"], found["cpu-index"], found["source"]) == ("vmem1", 1, "cpu")
    assert (found["gpa"], found["size"]) == (base + block * BLOCK + 8, 8)
    assert (found["write"], found["block"]) == (True, block)
    assert found["block-start"] == base + block * BLOCK
    assert 0 < found["seconds-since-unplug"] < 120
    assert found["rip"] > 0
    assert f"wrote 8 bytes at gpa {base + block * BLOCK + 8:#x}: block {block}" in guest.output()
    assert memslots(guest)["covered"] == (192 + 64) * MIB
    time.sleep(1)  # reports come once a second
    assert read(guest, base + block * BLOCK + 8) == 0
    assert event(guest, EVENT)["write"] is False
    assert intrusions(guest, 1)["count"] == 2
    assert read(guest, plugged) == 0x1122_3344_5566_7788
    assert intrusions(guest, 1)["count"] == 2
    assert guest.shell("md5sum </mnt/x") == before


def plugged_range(guest: Guest) -> list[str]:
    tree = guest.qmp.execute("x-minivmm-inspect")
    first: str = tree["board"]["devices"]["vmem1"]["model"]["plugged"][0]
    return first.split("-")


def unplugged_block(guest: Guest, base: int) -> int:
    """A block of the first Linux memory block that was plugged and is not any more."""
    start, end = (int(text, 16) for text in plugged_range(guest))
    return 0 if start > base else (end + 1 - base) // BLOCK


def test_memory_plugged_after_that_works(guest: Guest) -> None:
    guest.qmp.execute("qom-set", path="vmem0", property="requested-size", value=256 * MIB)
    guest.wait_until(lambda: device(guest, 0)["size"] == 256 * MIB, "grown vmem0")
    guest.shell("dd if=/dev/zero of=/mnt/z bs=1M count=32 && rm /mnt/z")
    guest.qmp.execute("qom-set", path="vmem0", property="requested-size", value=192 * MIB)
    guest.wait_until(lambda: device(guest, 0)["size"] == 192 * MIB, "shrunk vmem0")

    assert intrusions(guest, 0)["count"] == 0


def test_the_kernels_own_stray_read_is_named(guest: Guest) -> None:
    """With the driver at work: a probe of the direct map inside of a partly plugged block."""
    base = int(device(guest, 0)["memaddr"])
    tree = guest.qmp.execute("x-minivmm-inspect")
    last: str = tree["board"]["devices"]["vmem0"]["model"]["plugged"][-1]
    stray = int(last.split("-")[1], 16) + 1
    assert stray // LINUX_BLOCK == (stray - 1) // LINUX_BLOCK, "inside of a Linux memory block"

    guest.shell(
        "mount -t tracefs none /sys/kernel/tracing 2>/dev/null; cd /sys/kernel/tracing &&"
        f" echo 'p:stray ksys_sync here=@{DIRECT_MAP + stray:#x}:u64' >kprobe_events &&"
        " echo 1 >events/kprobes/stray/enable && sync; echo 0 >events/kprobes/stray/enable"
    )

    found = event(guest, EVENT)
    assert (found["id"], found["gpa"], found["write"]) == ("vmem0", stray, False)
    assert found["block"] == (stray - base) // BLOCK
    assert found["rip"] >= 0xFFFF_FFFF_8000_0000


def test_stop_pauses_the_guest(guest: Guest) -> None:
    base = release(guest, 2)

    guest.shell(f"(sleep 0.3; devmem {base + GIB + 4:#x} 32) >/dev/null 2>&1 &")

    found = event(guest, EVENT)
    assert (found["id"], found["gpa"], found["size"]) == ("vmem2", base + GIB + 4, 4)
    assert (found["write"], found["block"]) == (False, GIB // BLOCK)
    assert found["seconds-since-unplug"] is None
    event(guest, "STOP")
    assert guest.qmp.execute("query-status")["status"] == "paused"
    guest.qmp.execute("cont")
    assert guest.shell("echo alive") == "alive"


def test_kill_ends_the_guest(guest: Guest) -> None:
    base = release(guest, 3)

    guest.shell(f"(sleep 0.3; devmem {base:#x} 8 1) >/dev/null 2>&1 &")

    assert event(guest, EVENT)["id"] == "vmem3"
    assert event(guest, "SHUTDOWN") == {"guest": True, "reason": "guest-panic"}
    assert guest.wait() == 134
    assert f"wrote 1 bytes at gpa {base:#x}: block 0" in guest.output()
