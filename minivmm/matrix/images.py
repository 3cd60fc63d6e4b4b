"""The files that guests of one kernel are booted from: the same for every VMM."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from minivmm.guest.build import build_initramfs
from minivmm.guest.kernels import Kernel
from minivmm.guest.next_kernel import initrd_with_kernel
from minivmm.guest_image import DEFAULT_OPTIONS
from minivmm.matrix.guest import Setup

DRIVERS = ("virtio_balloon",)
"""Modules beside those that every initramfs has; they are loaded in every guest."""

POLICY = "online_movable"
"""How guests online memory at first; scenarios change it in the running guest."""


@dataclass(frozen=True)
class Files:
    """A kernel and an initrd."""

    kernel: Path
    initrd: Path


class Images:
    """Writes initrds into `folder`, each once: Python takes seconds for that in the lab."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[tuple[Path, bool], Files] = {}

    def files(self, kernel: Kernel, setup: Setup) -> Files:
        """What a guest of `setup` is booted from. Raises ImageError, HostError."""
        key = (kernel.image, setup.next_kernel)
        if key not in self._made:
            if setup.next_kernel:
                data = initrd_with_kernel(kernel, DRIVERS)
            else:
                data = build_initramfs(kernel.release, kernel.modules, DRIVERS)
            path = self._folder / f"initrd{len(self._made)}"
            path.write_bytes(data)
            self._made[key] = Files(kernel.image, path)
        return self._made[key]


def command_line(setup: Setup) -> str:
    """The kernel's command line, for every VMM the same."""
    return " ".join([*DEFAULT_OPTIONS, f"memhp_default_state={POLICY}", *setup.append])
