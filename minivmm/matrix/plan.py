"""From what was asked for to tracks that can be run; all that can be wrong is found before."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minivmm.errors import UsageError
from minivmm.guest import kernels
from minivmm.guest.kernels import Kernel
from minivmm.matrix import ours, qemu
from minivmm.matrix.guest import PLAIN, REGION, Guest, Setup
from minivmm.matrix.host import about_host
from minivmm.matrix.images import Images, command_line
from minivmm.matrix.results import Column
from minivmm.matrix.runner import Boot, Track
from minivmm.matrix.suites import Suite
from minivmm.options import unknown
from minivmm.version import __version__

PEERS = ("qemu",)
"""VMMs to compare with."""


@dataclass(frozen=True)
class Plan:
    """What is to be run: each kernel with each set of options, ours and, if wanted, a peer's."""

    suite: Suite
    kernels: tuple[tuple[str, Kernel], ...]
    options: tuple[tuple[str, ...], ...]
    against: str | None = None
    repeat: int = 1


def make_plan(
    suite: Suite,
    names: Sequence[str],
    options: Sequence[str],
    against: str | None,
    repeat: int,
) -> Plan:
    """Kernels by `names`, `options` as "packed=on,event_idx=off". Raises UsageError, ImageError
    for an unknown kernel, HostError for a peer that is not there.
    """
    if repeat < 1:
        raise UsageError(f"repeat {repeat} is out of range: 1 or more")
    if against is not None and against not in PEERS:
        raise UsageError(unknown("VMM to compare with", against, list(PEERS)))
    sets = tuple(tuple(word for word in text.split(",") if word) for text in options or [""])
    for chosen in sets:
        ours.device(chosen)  # complains
    if len(set(sets)) < len(sets):
        raise UsageError("the same device options are given twice")
    if len(set(names)) < len(names):
        raise UsageError("the same kernel is given twice")
    found = tuple((name, kernels.find(name)) for name in names)
    if against is not None:
        qemu.version()
    return Plan(suite, found, sets, against, repeat)


def tracks(plan: Plan, folder: Path) -> list[Track]:
    """What to run, a kernel after the other; initrds are written into `folder`."""
    images = Images(folder)
    made: list[Track] = []
    for name, kernel in plan.kernels:
        for options in plan.options:
            column = Column(name, ours.OurGuest.vmm, ",".join(options))
            made.append(Track(column, _our_boot(images, kernel, options)))
            if plan.against is not None:
                column = Column(name, qemu.QemuGuest.vmm, ",".join(options))
                boot = _qemu_boot(images, kernel, options)
                made.append(Track(column, boot, skip=_not_in_qemu(options)))
    return made


def about(plan: Plan) -> dict[str, Any]:
    """What the run was about, for its file: versions, host, sizes in bytes."""
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "minivmm": __version__,
        "qemu": None if plan.against is None else qemu.version(),
        "kernels": {name: kernel.release for name, kernel in plan.kernels},
        "suite": plan.suite.name,
        "amount": plan.suite.amount,
        "memory": PLAIN.memory,
        "region": REGION,
        "repeat": plan.repeat,
        "host": about_host(),
    }


def continued(old: dict[str, Any], new: dict[str, Any], name: str) -> dict[str, Any]:
    """What the run in file `name` was about, if this one may go on with it. Raises UsageError."""
    for key in ("suite", "amount", "repeat", "kernels", "qemu", "minivmm"):
        if old.get(key) != new[key]:
            raise UsageError(
                f"{name} is of another run ({key} {old.get(key)!r}, now {new[key]!r}): it cannot be"
                " resumed"
            )
    return old


def _our_boot(images: Images, kernel: Kernel, options: Sequence[str]) -> Boot:
    def boot(setup: Setup) -> Guest:
        return ours.OurGuest(images.files(kernel, setup), setup, options)

    return boot


def _qemu_boot(images: Images, kernel: Kernel, options: Sequence[str]) -> Boot:
    def boot(setup: Setup) -> Guest:
        files = images.files(kernel, setup)
        return qemu.QemuGuest(files, setup, options, command_line(setup))

    return boot


def _not_in_qemu(options: Sequence[str]) -> str | None:
    """Why QEMU cannot be run with `options`; None if it can."""
    lacking = [word for word in options if word.partition("=")[0] not in qemu.properties()]
    if not lacking:
        return None
    return f"QEMU {qemu.version()} has no {' and no '.join(lacking)} for virtio-mem-pci"
