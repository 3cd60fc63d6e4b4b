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
from minivmm.memory import hugepages
from minivmm.memory.hugepages import THP_ANON, THP_SHMEM, Pool
from minivmm.memory.region import Region
from minivmm.units import GIB, MIB, format_size
from minivmm.vfio.survey import survey

OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
MAPPINGS = Path("/proc/sys/vm/max_map_count")

USUAL_MAPPINGS = 65530
"""The kernel's default of vm.max_map_count. protect= needs two for each run of plugged blocks."""


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
        _transparent("thp", "enabled", THP_ANON),
        _transparent("thp shared", "shmem_enabled", THP_SHMEM),
        *_hugetlb(),
        _setting("overcommit", OVERCOMMIT, lambda text: text != "2"),
        _setting("mappings", MAPPINGS, lambda text: int(text) >= USUAL_MAPPINGS),
        _passthrough(),
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


def _transparent(name: str, setting: str, allowing: tuple[str, ...]) -> Check:
    """Do guests of backing=anon, or memfd, get transparent huge pages with thp=on?"""
    found = hugepages.thp_setting(setting)
    if found is None:
        return Check(name, False, "not in this host's kernel", "another kernel", needed=False)
    cure = f"`echo {allowing[-1]} > {hugepages.thp_switch(setting)}`"
    size = format_size(hugepages.thp_size() or 0)
    return Check(name, found in allowing, f"pages of {size}: {found}", cure, needed=False)


def _hugetlb() -> list[Check]:
    """The pools that backing=hugetlb takes its pages from."""
    pools = hugepages.pools().values()
    if not pools:
        return [Check("hugetlb", False, "not in this host's kernel", "another kernel", False)]
    return [_pool(pool) for pool in pools]


def _pool(pool: Pool) -> Check:
    size = format_size(pool.page_size)
    detail = f"{pool.free} of {pool.total} pages free, {format_size(pool.available)} to be had"
    cure = f"`echo N > {hugepages.pool_directory(pool.page_size)}/nr_hugepages`"
    if pool.page_size >= GIB:
        cure += f", or boot with hugepagesz={size} hugepages=N, as memory becomes fragmented"
    return Check(f"hugetlb {size}", pool.available > 0, detail, cure, needed=False)


def _passthrough() -> Check:
    """Could --device vfio-pci have one of the host's devices now?"""
    found = survey()
    return Check("passthrough", found.ok, found.detail, found.cure, needed=False)


def _setting(name: str, path: Path, good: Callable[[str], bool]) -> Check:
    """A kernel setting that helps, but is not needed."""
    try:
        text = path.read_text().strip()
    except OSError as error:
        return Check(name, False, f"{path}: {error.strerror}", needed=False)
    return Check(name, good(text), text, f"write another value to {path}", needed=False)
