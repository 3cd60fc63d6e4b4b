"""Interrupts as stock kernels see them: pins by the I/O APIC, shared lines, messages that move.

6.12 has a device without MSI-X beside others; 6.1 is told to use pins for all.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from harness import Guest

MIB = 1 << 20

DEVICES = 8
"""Slots 2 to 9: the last one shares its line with the console in slot 1."""


@dataclass(frozen=True)
class Line:
    """A row of /proc/interrupts: counts by CPU, where it comes from, the names of its users."""

    number: int
    counts: tuple[int, ...]
    origin: str
    users: tuple[str, ...]


def interrupts(guest: Guest) -> dict[str, Line]:
    """Rows by user; a shared row stands under each of them."""
    text = guest.shell("cat /proc/interrupts")
    cpus = len(text.splitlines()[0].split())
    found: dict[str, Line] = {}
    for row in text.splitlines()[1:]:
        name, *words = row.split()
        if not name[:-1].isdigit():
            continue
        # The users come last, behind the chip and the kind; names of ours have no blanks.
        users = tuple(word.rstrip(",") for word in words[cpus:] if word.startswith("virtio"))
        origin = " ".join(words[cpus : len(words) - len(users)])
        line = Line(int(name[:-1]), tuple(map(int, words[:cpus])), origin, users)
        found |= dict.fromkeys(users, line)
    return found


def grow_and_shrink(guest: Guest, identifier: str) -> None:
    guest.resize(**{identifier: 256 * MIB})
    guest.resize(**{identifier: 0})


@pytest.mark.parametrize("kernel", ["6.12"])
def test_device_without_vectors_uses_its_pin_and_messages_move_between_cpus(kernel: str) -> None:
    devices = [
        "--device=virtio-mem-pci,id=vmem0,size=1G,vectors=0",
        "--device=virtio-mem-pci,id=vmem1,size=1G,flr=on",
    ]
    with Guest("-k", kernel, "-p", "2", *devices) as guest:
        check_pin_beside_messages(guest)
        check_messages_move(guest)
        check_function_reset(guest)


def check_pin_beside_messages(guest: Guest) -> None:
    before = interrupts(guest)

    grow_and_shrink(guest, "vmem0")

    after = interrupts(guest)
    assert after["virtio1"].origin == "IO-APIC 18-fasteoi"
    assert after["virtio1"].users == ("virtio1",)
    assert sum(after["virtio1"].counts) > sum(before["virtio1"].counts)
    assert "MSI" in after["virtio0-config"].origin
    assert "MSI" in after["virtio2-config"].origin
    assert guest.shell("dmesg | grep -ci 'nobody cared' || true") == "0"


def check_messages_move(guest: Guest) -> None:
    """Linux moves a message at its next arrival: mask, rewrite, unmask. So the first may be old."""
    for cpu in (1, 0, 1):
        for user in ("virtio2-config", "virtio2-guest-request"):
            number = interrupts(guest)[user].number
            guest.shell(f"echo {1 << cpu} > /proc/irq/{number}/smp_affinity")
        grow_and_shrink(guest, "vmem1")
        before = interrupts(guest)

        grow_and_shrink(guest, "vmem1")

        after = interrupts(guest)
        for user in ("virtio2-config", "virtio2-guest-request"):
            came = [b - a for a, b in zip(before[user].counts, after[user].counts, strict=True)]
            assert came[cpu] > 0, (user, cpu, came)
            assert came[1 - cpu] == 0, (user, cpu, came)


def check_function_reset(guest: Guest) -> None:
    """Linux saves and restores configuration space around it, BARs included."""
    method = guest.shell(
        "cd /sys/bus/pci/drivers/virtio-pci; device=0000:00:03.0; cat $device/reset_method;"
        " echo $device > unbind; echo 1 > /sys/bus/pci/devices/$device/reset;"
        " echo $device > bind"
    )

    assert method == "af_flr"
    grow_and_shrink(guest, "vmem1")


@pytest.mark.parametrize("kernel", ["6.1"])
def test_pins_alone_carry_a_guest_even_on_a_shared_line(kernel: str) -> None:
    devices = [f"--device=virtio-mem-pci,id=vmem{n},size=512M" for n in range(DEVICES)]
    with Guest("-k", kernel, "--append", "pci=nomsi", *devices) as guest:
        found = interrupts(guest)
        assert {line.origin for line in found.values()} == {
            f"IO-APIC {gsi}-fasteoi" for gsi in range(16, 24)
        }
        assert set(found["virtio0"].users) == {"virtio0", f"virtio{DEVICES}"}
        before = sum(found["virtio1"].counts)

        guest.resize(vmem0=256 * MIB, vmem7=256 * MIB)
        assert guest.shell("dd if=/dev/zero bs=64k count=64 2>/dev/null | wc -c") == "4194304"
        assert len(guest.run("dd", "if=/dev/zero", "bs=64k", "count=16").stdout) == MIB
        guest.resize(vmem0=0, vmem7=0)

        after = interrupts(guest)
        assert sum(after["virtio1"].counts) > before
        assert guest.shell("dmesg | grep -ci 'nobody cared' || true") == "0"
