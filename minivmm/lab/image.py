"""Puts the lab machine's initramfs together: busybox, KVM's modules, init.sh; no agent, no Python.

Those come from the host's file system, which init.sh mounts.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from minivmm.errors import ImageError
from minivmm.guest.busybox import find_busybox
from minivmm.guest.initramfs import Archive
from minivmm.guest.modules import ModuleTree

MODULES = ("kvm_amd",)
"""Loaded by init.sh with what they depend on: QEMU can emulate SVM, but not VMX."""
APPLETS = ("sh", "mount", "insmod", "mkdir", "ln", "ip", "hostname", "switch_root")
"""The busybox commands that init.sh calls."""

_SIGNATURE_END = b"~Module signature appended~\n"
_SIGNATURE_INFO_SIZE = 12
"""Bytes of struct module_signature, the last four being the signature's length, big-endian."""


def build_image(
    release: str,
    modules: Path | None,
    *,
    also: Sequence[str] = (),
    options: Mapping[str, str] | None = None,
    addresses: Sequence[str] = (),
) -> bytes:
    """The initramfs for the kernel with `modules` (/lib/modules/RELEASE; None: all built in).

    `also` are modules to load beside KVM's, `options` parameters for any of them by name,
    `addresses` PCI devices to bind to vfio-pci. Raises ImageError if the kernel lacks a module,
    HostError without a static busybox.
    """
    archive = Archive()
    archive.add_character_device("/dev/console", 5, 1)
    for directory in ("/proc", "/sys", "/host"):
        archive.add_directory(directory)
    archive.add_file("/bin/busybox", find_busybox().read_bytes(), 0o755)
    for name in APPLETS:
        archive.add_link(f"/bin/{name}", "busybox")
    archive.add_file("/init", Path(__file__).with_name("init.sh").read_bytes(), 0o755)
    archive.add_file("/lab.conf", _settings(addresses))
    _add_modules(archive, release, modules, (*MODULES, *also), options or {})
    return archive.build()


def without_signature(module: bytes) -> bytes:
    """`module` without the signature at its end, which an emulated machine checks for 0.3 s.

    Format: the kernel's include/linux/module_signature.h.
    """
    if not module.endswith(_SIGNATURE_END):
        return module
    end = len(module) - len(_SIGNATURE_END)
    return module[: end - _SIGNATURE_INFO_SIZE - int.from_bytes(module[end - 4 : end], "big")]


def _add_modules(
    archive: Archive,
    release: str,
    modules: Path | None,
    wanted: Sequence[str],
    options: Mapping[str, str],
) -> None:
    lines: list[str] = []
    if modules is not None:
        found, missing = ModuleTree(modules).load_order(wanted)
        if missing:
            purpose = "KVM for AMD" if missing[0] in MODULES else "VFIO and virtio-iommu"
            raise ImageError(
                f"kernel {release} has no module {missing[0]} in {modules}: the lab needs a kernel"
                f" with {purpose}, such as Debian's (`minivmm kernel fetch`)"
            )
        for module in found:
            archive.add_file(f"/lib/modules/{module.name}.ko", without_signature(module.data))
            lines.append(f"{module.name} {options.get(module.name, '')}".rstrip() + "\n")
    archive.add_file("/lib/modules/order", "".join(lines).encode())


def _settings(addresses: Sequence[str]) -> bytes:
    """What init.sh has to know of the host, as shell assignments."""
    source = Path(__file__).resolve().parents[2]
    values = {
        "PYTHON": sys.executable,
        "SOURCE": str(source),
        "DEVICES": " ".join(addresses),
    }
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items()).encode()
