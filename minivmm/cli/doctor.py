"""`minivmm doctor`: what this host has for booting guests, and what cures what it lacks."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minivmm.accel import Accel, probe
from minivmm.cli.text import add_json, print_json
from minivmm.errors import HostError
from minivmm.guest.busybox import find_busybox
from minivmm.guest.kernels import fetched
from minivmm.lab.machine import find_qemu, find_virtiofsd
from minivmm.memory.region import Region
from minivmm.units import MIB, format_size

HUGEPAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")


@dataclass(frozen=True)
class Check:
    """One finding. `needed` for booting at all: any of those that is not ok makes doctor fail."""

    name: str
    ok: bool
    detail: str
    cure: str | None = None
    needed: bool = True


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_json(parser)
    parser.add_argument(
        "--kvm",
        action="store_true",
        help="check /dev/kvm alone: status 1 if it cannot run stock kernels",
    )


def run(args: argparse.Namespace) -> int:
    """Check everything; status 1 if no guest can be booted here, in the lab or without it."""
    accel = probe()
    checks = [check_kvm(accel, needed=True)] if args.kvm else examine(accel)
    healthy = all(check.ok for check in checks if check.needed)
    if args.json:
        print_json({"ok": healthy, "checks": [vars(check) for check in checks]})
    else:
        for check in checks:
            mark = "ok" if check.ok else "MISSING" if check.needed else "no"
            cure = f"; cure: {check.cure}" if check.cure and not check.ok else ""
            print(f"{mark:8} {check.name}: {check.detail}{cure}")
    return 0 if healthy else 1


def check_kvm(accel: Accel, *, needed: bool) -> Check:
    """The finding on /dev/kvm as a whole."""
    return Check("kvm", accel.usable, accel.reason, accel.cure, needed)


def examine(accel: Accel) -> list[Check]:
    """All findings. The lab is needed only where /dev/kvm is not usable."""
    lab_needed = not accel.usable
    capabilities = [
        Check(f"kvm {name}", bool(value), str(value), needed=False)
        for name, value in accel.details.items()
    ]
    return [
        check_kvm(accel, needed=False),
        *capabilities,
        _program("qemu", find_qemu, lab_needed),
        _program("virtiofsd", find_virtiofsd, lab_needed),
        _program("busybox", find_busybox, True),
        _kernels(),
        _mapping(),
        _setting("huge pages", HUGEPAGES, lambda text: "[never]" not in text),
        _setting("overcommit", OVERCOMMIT, lambda text: text != "2"),
    ]


def _program(name: str, find: Callable[[], str | Path], needed: bool) -> Check:
    """Ask who looks for it when a guest is booted; the complaint, if any, names the cure."""
    try:
        return Check(name, True, str(find()), needed=needed)
    except HostError as error:
        return Check(name, False, str(error), needed=needed)


def _kernels() -> Check:
    releases = [kernel.release for kernel in fetched()]
    return Check(
        "kernels", bool(releases), ", ".join(releases) or "none fetched", "minivmm kernel fetch"
    )


def _mapping() -> Check:
    """Can a guest's memory be mapped?"""
    size = 512 * MIB
    try:
        Region(size).close()
    except HostError as error:
        return Check("memory", False, str(error), "free memory, or vm.overcommit_memory=1")
    return Check("memory", True, f"{format_size(size)} can be mapped")


def _setting(name: str, path: Path, good: Callable[[str], bool]) -> Check:
    """A kernel setting that helps, but is not needed."""
    try:
        text = path.read_text().strip()
    except OSError as error:
        return Check(name, False, f"{path}: {error.strerror}", needed=False)
    return Check(name, good(text), text, f"write another value to {path}", needed=False)
