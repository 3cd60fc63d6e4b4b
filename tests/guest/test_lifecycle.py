"""What happens to plugged memory when drivers and kernels come and go, but the machine stays.

Reboot and the end of machines are test_life.py's matter. The tests share a guest, and none relies
on another: each begins by asking for the size that it needs.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from typing import Any

import kexec
import pytest
from harness import Guest

from minivmm.spec.virtio_mem import Feature

MIB = 1 << 20
BLOCK = 2 * MIB
SIZE = 192 * MIB
"""One whole memory block of Linux (128 MiB) and half of a second one."""
PAGE = 4096
COPIES = 48
"""How often content repeats, 1 MiB each time: little enough to lie wholly in plugged memory."""

DRIVER = "/sys/bus/virtio/drivers/virtio_mem"
UNBOUND = "ACKNOWLEDGE"
"""Status of a device without a driver: Linux has reset it, and acknowledged it once more."""
FIND_DEVICE = f"for d in {DRIVER}/virtio*; do device=${{d##*/}}; done"

PT_LOAD = 1
_ELF_PROGRAM_HEADERS = struct.Struct("<32xQ16xH")  # e_phoff, e_phnum
_ELF_SEGMENT = struct.Struct("<I4xQ8xQ8xQ8x")  # p_type, p_offset, p_paddr, p_memsz


@pytest.fixture(scope="module")
def guest(kernel: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A guest that can start another kernel, and has memory set aside for a crash kernel."""
    initrd = tmp_path_factory.mktemp("initrd") / "initrd"
    kexec.write_initrd(initrd, kernel)
    device = f"virtio-mem-pci,id=vmem0,size=2G,block-size=2M,requested-size={SIZE}"
    options = ("-a", "crashkernel=192M", "--initrd", str(initrd), "--device", device)
    with Guest("-k", kernel, "-m", "512M", *options) as started:
        yield started


@pytest.mark.rule("MEM-D-15")
def test_persistent_suspend_is_not_offered_as_there_is_no_s3(guest: Guest) -> None:
    offered = int(transport(guest)["device-features"], 16)

    assert offered & Feature.ACPI_PXM and not offered & Feature.PERSISTENT_SUSPEND
    assert guest.shell(f"cut -c 1-3 {DRIVER}/virtio*/features") == "110"
    assert guest.shell("cat /sys/power/mem_sleep") == "[s2idle]"


def test_suspend_to_idle_keeps_memory_or_an_old_driver_refuses(guest: Guest, kernel: str) -> None:
    guest.resize(SIZE)
    content = fill(guest)
    blocks = plugged(guest)

    suspend = "echo enabled >/sys/class/tty/ttyS0/power/wakeup; echo freeze >/sys/power/state"
    guest.shell(f"(sleep 0.3; {suspend}; echo $? >/tmp/status) 2>/tmp/why &")
    if kernel == "6.1":
        guest.wait_until(lambda: guest.run("test", "-s", "/tmp/status").status == 0, "refusal")
        assert "Operation not permitted" in guest.shell("cat /tmp/why")
        assert guest.shell("cat /sys/power/suspend_stats/success") == "0"
    else:
        guest.wait_until(lambda: transport(guest)["status"] == "reset", "suspension")
        assert plugged(guest) == blocks
        guest.request(vmem0=SIZE + 32 * MIB)
        guest.wait_until(lambda: woken(guest), "agent once awake")
        guest.wait_until(lambda: guest.device()["size"] == SIZE + 32 * MIB, "growth once awake")
        assert guest.shell("cat /tmp/status /sys/power/suspend_stats/success").split() == ["0", "1"]

    assert digest(guest) == content.hexdigest
    guest.shell("umount /mnt")


def test_driver_unbound_bound_and_reloaded_takes_up_where_it_was(guest: Guest) -> None:
    guest.resize(0)
    name = guest.shell(f"{FIND_DEVICE}; echo $device >{DRIVER}/unbind; echo $device")
    assert transport(guest)["status"] == UNBOUND

    guest.request(vmem0=128 * MIB)  # nobody listens
    guest.shell(f"echo {name} >{DRIVER}/bind")
    guest.wait_until(lambda: guest.device()["size"] == 128 * MIB, "what was asked meanwhile")

    guest.resize(0)
    guest.shell("rmmod virtio_mem")
    assert transport(guest)["status"] == UNBOUND
    guest.shell("insmod /lib/modules/virtio_mem.ko")
    guest.resize(SIZE)
    assert set(guest.device()["answers"]) == {"PLUG", "UNPLUG"}


def test_device_reset_changes_nothing_and_a_second_kernel_unplugs_all(guest: Guest) -> None:
    guest.resize(SIZE)
    content = fill(guest)
    blocks, first_boot = plugged(guest), boot_id(guest)
    unplugged_all = unplug_alls(guest)

    name = guest.shell(f"{FIND_DEVICE}; echo $device >{DRIVER}/unbind; echo $device")
    assert transport(guest)["status"] == UNBOUND
    assert (plugged(guest), digest(guest)) == (blocks, content.hexdigest)
    # Linux cannot take over memory that a former driver left behind, but it resets the device.
    assert guest.run("sh", "-c", f"echo {name} >{DRIVER}/bind").status != 0
    assert "FAILED" in transport(guest)["status"]
    assert (plugged(guest), digest(guest)) == (blocks, content.hexdigest)

    guest.request(vmem0=128 * MIB)
    kexec.load(guest)
    kexec.start(guest)
    kexec.await_next(guest)

    assert boot_id(guest) != first_boot
    guest.wait_until(lambda: guest.device()["size"] == 128 * MIB, "plugged by the second kernel")
    assert unplug_alls(guest) == unplugged_all + 1
    assert "unplugging all memory is required" in guest.shell("dmesg | grep virtio_mem")
    known = guest.shell("cat /sys/firmware/memmap/*/end").split()
    assert max(int(end, 16) for end in known) < guest.device()["memaddr"]


def test_kdump_holds_plugged_memory_and_only_that(guest: Guest) -> None:
    guest.resize(SIZE)
    content = fill(guest)
    blocks = plugged(guest)
    assert len(blocks) == 1
    unplugged_all = unplug_alls(guest)
    kexec.load(guest, crash=True)

    kexec.end_kernel(guest, "echo c >/proc/sysrq-trigger")
    kexec.await_next(guest)
    assert "disabled in kdump kernel" in guest.shell("dmesg | grep virtio_mem")
    assert (plugged(guest), unplug_alls(guest)) == (blocks, unplugged_all)

    base = guest.device()["memaddr"]
    (segment,) = [segment for segment in dump_segments(guest) if segment[1] >= base]
    offset, gpa, length = segment
    assert (gpa, length) == (base, 256 * MIB)  # Linux's blocks that have memory, of 2 GiB
    pages = read_dump(guest, range(offset, offset + length, 2 * BLOCK))

    inside, outside = pages[: SIZE // (2 * BLOCK)], pages[SIZE // (2 * BLOCK) :]
    found = sum(page in content.pages for page in inside)
    assert found > COPIES * MIB // (2 * BLOCK) // 2  # most of the 12 that content is spread over
    assert set(outside) == {bytes(PAGE)}
    assert guest.device()["answers"]["STATE"] == {"ACK": len(pages)}
    assert guest.device()["resident"] <= SIZE

    guest.shell("(sleep 0.5; reboot -f) &")
    while (event := guest.qmp.event(30)) and event["event"] != "RESET":
        pass
    assert event is not None and event["data"]["guest"] is True
    assert guest.device()["size"] == 0 and guest.device()["requested-size"] == SIZE


class Content:
    """What `fill` wrote: COPIES times the same random MiB."""

    def __init__(self) -> None:
        self.data = os.urandom(MIB)
        self.pages = {self.data[at : at + PAGE] for at in range(0, MIB, PAGE)}
        self.hexdigest = hashlib.md5(self.data * COPIES).hexdigest()


def fill(guest: Guest) -> Content:
    """Write content into a tmpfs at /mnt; its pages are movable, as the device's memory is."""
    content = Content()
    copy = f"i=0; while [ $i -lt {COPIES} ]; do cat /tmp/x; i=$((i+1)); done >/mnt/x"
    script = f"mount -t tmpfs none /mnt && cat >/tmp/x; {copy}; rm /tmp/x"
    done = guest.run("sh", "-c", script, stdin=content.data)
    assert done.status == 0, done
    assert guest.device()["resident"] >= COPIES * MIB
    return content


def digest(guest: Guest) -> str:
    """MD5 of what is at /mnt now."""
    return guest.shell("md5sum </mnt/x").split()[0]


def inspected(guest: Guest) -> dict[str, Any]:
    """The device's part of the live tree."""
    found: dict[str, Any] = guest.qmp.execute("x-minivmm-inspect")["board"]["devices"]["vmem0"]
    return found


def transport(guest: Guest) -> dict[str, Any]:
    """Status and features of the device."""
    found: dict[str, Any] = inspected(guest)["transport"]
    return found


def plugged(guest: Guest) -> list[str]:
    """Plugged ranges of guest physical addresses."""
    found: list[str] = inspected(guest)["model"]["plugged"]
    return found


def unplug_alls(guest: Guest) -> int:
    """How many requests to unplug all were acknowledged."""
    return int(guest.device()["answers"].get("UNPLUG_ALL", {}).get("ACK", 0))


def boot_id(guest: Guest) -> str:
    return guest.shell("cat /proc/sys/kernel/random/boot_id")


def woken(guest: Guest) -> bool:
    """Send a wake-up by the serial port, which a guest still on its way to sleep misses."""
    guest.type(b"\n")
    return bool(guest.info()["agent"]["ready"])


def dump_segments(guest: Guest) -> list[tuple[int, int, int]]:
    """(offset in /proc/vmcore, gpa, bytes) of the memory in it."""
    head = guest.run("head", "-c", str(PAGE), "/proc/vmcore").stdout
    start, count = _ELF_PROGRAM_HEADERS.unpack_from(head)
    headers = (_ELF_SEGMENT.unpack_from(head, start + _ELF_SEGMENT.size * n) for n in range(count))
    return [(offset, gpa, size) for kind, offset, gpa, size in headers if kind == PT_LOAD]


def read_dump(guest: Guest, offsets: range) -> list[bytes]:
    """A page of /proc/vmcore from each of the offsets."""
    read = f"dd if=/proc/vmcore bs={PAGE} count=1 iflag=skip_bytes skip=$at status=none"
    steps = f"seq {offsets.start} {offsets.step} {offsets.stop - 1}"
    done = guest.run("sh", "-c", f"for at in $({steps}); do {read}; done")
    assert done.status == 0 and len(done.stdout) == PAGE * len(offsets), done.stderr
    return [done.stdout[at : at + PAGE] for at in range(0, len(done.stdout), PAGE)]
