"""What is loaded into the guest at every (re)start, resolved from the spec to bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from minivmm.errors import ImageError
from minivmm.guest.build import build_initramfs
from minivmm.guest.files import read_image
from minivmm.guest.kernels import find, newest
from minivmm.guest.modules import ModuleTree
from minivmm.machine_spec import MachineSpec

DEFAULT_OPTIONS = ("console=ttyS0", "quiet", "panic=-1", "8250.nr_uarts=1", "pci=noearly")
"""Quiet because every character on a serial port is an exit; panic=-1 so that a panic ends.

One UART, and no early look for PCI devices with quirks: there are none, and looking costs exits.
"""


@dataclass(frozen=True)
class GuestImage:
    """Kernel and initrd as bytes, the kernel's file name for messages, the command line."""

    kernel: bytes
    name: str
    cmdline: str
    initrd: bytes | None


def resolve(spec: MachineSpec, *, shell: bool) -> GuestImage:
    """Find and read what `spec` names; None means the newest fetched kernel and our initramfs.

    `shell` asks our init for a shell on `spec.keyboard`. Raises ImageError, HostError.
    """
    kernel = newest() if spec.kernel is None else find(spec.kernel)
    modules = Path(spec.modules) if spec.modules is not None else kernel.modules
    if modules is not None and not modules.is_dir():
        raise ImageError(
            f"modules directory {modules} does not exist: give --modules a directory that is laid"
            " out like /lib/modules/RELEASE"
        )
    _check_named_modules(spec, modules)
    if spec.initrd is None:
        drivers = {name for device in spec.devices for name in device.guest_modules}
        initrd = build_initramfs(kernel.release, modules, sorted(drivers))
    else:
        initrd = read_image(Path(spec.initrd), "initrd")
    words = [*DEFAULT_OPTIONS, f"memhp_default_state={spec.online}"]
    words += [f"minivmm.shell={spec.keyboard}"] if shell else []
    return GuestImage(
        kernel=read_image(kernel.image, "kernel"),
        name=str(kernel.image),
        cmdline=" ".join([*words, *spec.append]),
        initrd=initrd,
    )


def _check_named_modules(spec: MachineSpec, modules: Path | None) -> None:
    """Raises ImageError if the guest's kernel lacks a module that the user named."""
    named = [name for device in spec.passed_on for name in device.guest_modules]
    if named and modules is not None:
        _, missing = ModuleTree(modules).load_order(named)
        if missing:
            raise ImageError(
                f"guest-module {missing[0]}: the guest's kernel has no such module in {modules}:"
                " leave it out, or give a kernel that has it (-k, --modules)"
            )
