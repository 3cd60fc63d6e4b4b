"""QEMU's command lines: the machine types that minivmm is compared with, and their virtio-mem."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from minivmm.matrix.guest import DEVICE_ID
from minivmm.matrix.images import Files

PROGRAM = "qemu-system-x86_64"

Q35 = "q35"
"""The machine that most people run, with SeaBIOS."""

MICROVM = "microvm,pit=off,pic=off,rtc=on"
"""The smallest one, with qboot and without PCI, so without virtio-mem-pci.

Without a clock, its default, Linux waits for one: that takes 42,000 more exits and some seconds.
"""


def machine_words(
    kernel: Path, *, machine: str = Q35, memory: int, cpus: int = 1, hotplug: int = 0
) -> list[str]:
    """QEMU under KVM with `memory` bytes, addresses for `hotplug` more, and no device or console.

    The firmware starts `kernel` at once.
    """
    size = f"size={memory}b" + (f",maxmem={memory + hotplug}b" if hotplug else "")
    return [
        *(PROGRAM, "-nodefaults", "-no-user-config", "-display", "none", "-kernel", str(kernel)),
        *("-machine", machine, "-accel", "kvm", "-cpu", "host", "-smp", str(cpus), "-m", size),
    ]


def linux_words(files: Files, command_line: str) -> list[str]:
    """What Linux gets beside its kernel."""
    return ["-initrd", str(files.initrd), "-append", command_line]


def memory_device_words(region: int, options: Sequence[str]) -> list[str]:
    """A virtio-mem device with a region of `region` bytes, of which nothing is plugged."""
    device = [f"virtio-mem-pci,id={DEVICE_ID},memdev=mem0,requested-size=0", *options]
    memory = f"memory-backend-ram,id=mem0,size={region}b,reserve=off"
    return ["-object", memory, "-device", ",".join(device)]
