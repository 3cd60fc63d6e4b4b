"""VirtioMemSpec: what the user says about a virtio-mem device, with QEMU's property names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from minivmm.errors import UsageError
from minivmm.memory.region import PAGE_SIZE
from minivmm.options import choice_option, number_option, option, size_option
from minivmm.units import MIB, align_down, format_size, is_power_of_two

MINIMUM_BLOCK_SIZE = max(MIB, PAGE_SIZE)
"""Blocks consist of whole host pages; below 1 MiB there would be too many of them (as QEMU)."""

CONSOLE_ID = "console0"
"""Name of the virtio-console that every board has."""

_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")  # as QEMU; paths and completions are made of it

MAXIMUM_NODES = 64
"""NUMA nodes that Linux on x86-64 is built for by default (CONFIG_NODES_SHIFT=6)."""


@dataclass(frozen=True, kw_only=True)
class VirtioMemSpec:
    """A virtio-mem device; sizes in bytes. Raises UsageError when constructed from nonsense."""

    id: str = option("name of the device", default="vmem0")
    size: int = size_option("most memory that the guest can have from it")
    requested_size: int = size_option("memory that the guest should have at boot", default=0)
    block_size: int = size_option(
        "unit of plugging: a power of two of at least 1M; smaller than 2M costs huge pages",
        default=2 * MIB,
    )
    memaddr: int | None = size_option("guest physical address of the region", default=None)
    node: int = number_option("NUMA node (ACPI proximity domain) of the memory", default=0)
    unplugged_inaccessible: str = choice_option(
        "must the driver promise never to read unplugged memory? auto: ask for the promise, and"
        " work with old drivers that cannot give it; on: refuse those; off: do not ask",
        ("auto", "on", "off"),
        default="auto",
    )

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id) or self.id == CONSOLE_ID:
            raise UsageError(
                f"device id {self.id!r} is not usable: letters, digits, '.', '_' and '-', starting"
                f" with a letter, and not {CONSOLE_ID}, which is the machine's own"
            )
        block = self.block_size
        if not is_power_of_two(block) or block < MINIMUM_BLOCK_SIZE:
            self._refuse(
                f"block-size {format_size(block)} is not a power of two of at least"
                f" {format_size(MINIMUM_BLOCK_SIZE)} (usual: 2M)"
            )
        if self.size == 0:
            self._refuse("size 0 leaves nothing to plug: give the most memory the guest may have")
        self._check_multiple("size", self.size)
        self._check_multiple("requested-size", self.requested_size)
        if self.requested_size > self.size:
            self._refuse(
                f"requested-size {format_size(self.requested_size)} exceeds size"
                f" {format_size(self.size)}: raise size= or lower requested-size="
            )
        if self.memaddr is not None and self.memaddr % block:
            below = align_down(self.memaddr, block)
            self._refuse(
                f"memaddr {self.memaddr:#x} is not a multiple of block-size {format_size(block)}"
                f" (nearest: {below:#x}, {below + block:#x})"
            )
        if self.node >= MAXIMUM_NODES:
            self._refuse(f"node {self.node} is more than Linux knows: use 0 to {MAXIMUM_NODES - 1}")

    def _check_multiple(self, name: str, value: int) -> None:
        if value % self.block_size:
            below = align_down(value, self.block_size)
            self._refuse(
                f"{name} {format_size(value)} is not a multiple of block-size"
                f" {format_size(self.block_size)} (nearest: {format_size(below)},"
                f" {format_size(below + self.block_size)})"
            )

    def _refuse(self, why: str) -> None:
        raise UsageError(f"{self.id}: {why}")
