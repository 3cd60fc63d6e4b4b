"""Interrupts as stock kernels see them: pins by the I/O APIC, shared lines, messages that move.

One guest per kernel has pins only, for each type of device; messages on all sorts of rings are
test_rings.py's.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import Guest
from interrupt_rows import interrupts
from matrix_guest import (
    ACCESS_PLATFORM,
    BLOCK,
    COMMON,
    EVENT_IDX,
    INDIRECT_DESC,
    PACKED,
    Case,
    Matrix,
)

PIN_CASES = {
    "split": Case(""),
    "packed": Case("packed=on,iommu_platform=on", COMMON | {PACKED, ACCESS_PLATFORM}),
    "packed-slow": Case("packed=on,ioeventfd=off,event_idx=off", COMMON - {EVENT_IDX} | {PACKED}),
    "split-plain": Case("event_idx=off,indirect_desc=off", COMMON - {EVENT_IDX, INDIRECT_DESC}),
}
MASKED = ("split", "packed")
"""On 6.1 these have MSI-X, which the kernel is told not to use."""


def grow_and_shrink(guest: Guest, identifier: str) -> None:
    guest.resize(**{identifier: BLOCK})
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
    for cpu in (1, 0):
        for user in ("virtio2-config", "virtio2-guest-request"):
            number = interrupts(guest)[user].number
            guest.shell(f"echo {1 << cpu} > /proc/irq/{number}/smp_affinity")
        guest.resize(vmem1=BLOCK)
        before = interrupts(guest)

        guest.resize(vmem1=0)

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


def without_vectors(case: Case) -> Case:
    return Case(",".join(filter(None, [case.switches, "vectors=0"])), case.features)


def test_pins_alone_carry_every_device_even_on_shared_lines(kernel: str, tmp_path: Path) -> None:
    cases, words = {name: without_vectors(case) for name, case in PIN_CASES.items()}, []
    if kernel == "6.1":
        words = ["--append", "pci=nomsi"]
        cases |= {name: PIN_CASES[name] for name in MASKED}
    balloon, console = cases["packed-slow"], cases["split-plain"]
    matrix = Matrix(tmp_path, cases, balloon=balloon, console=console)
    with Guest("-k", kernel, *words, *matrix.options()) as guest:
        found = matrix.check_negotiated(guest)
        names = {one.linux for one in found.values()}
        before = interrupts(guest)
        assert before.keys() == names
        assert {line.origin for line in before.values()} == {
            f"IO-APIC {gsi}-fasteoi" for gsi in range(16, 24)
        }
        assert max(len(line.users) for line in before.values()) > 1

        matrix.work(guest)

        after = interrupts(guest)
        assert all(sum(after[name].counts) > sum(before[name].counts) for name in names)
        assert guest.shell("dmesg | grep -ci 'nobody cared' || true") == "0"
