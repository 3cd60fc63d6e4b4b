"""THE address map: where RAM, device memory and PCI windows lie. Nothing is mapped here.

    0            low RAM, at most 3 GiB
    0xC0000000   32-bit PCI window
    0xE0000000   ECAM (PCI configuration space)
    0xFEC00000   IOAPIC, local APIC and KVM's own pages, to 4 GiB
    4 GiB        the rest of RAM
    then         device memory, every region 2 GiB aligned unless the user chose an address
    then         64-bit PCI window
    2**phys_bits the end of what the CPU can address

Linux explains the alignment: it adds memory in blocks of 128 MiB to 2 GiB and never uses the parts
of a region that do not fill such a block (reference D.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from minivmm.errors import UsageError
from minivmm.memory.region import PAGE_SIZE
from minivmm.spec import platform
from minivmm.units import GIB, MIB, align_down, align_up, format_size

MINIMUM_MEMORY = 64 * MIB
"""Less boot memory than this does not start a distribution kernel with its initrd."""

LINUX_BLOCK_MINIMUM = 128 * MIB
"""Smallest unit in which Linux on x86-64 adds memory; explicit addresses are multiples of it."""
LINUX_BLOCK_MAXIMUM = 2 * GIB
"""Largest such unit; addresses that we choose are multiples of it."""

MMIO64_SIZE = 64 * GIB
MMIO64_MINIMUM = 1 * GIB
"""The 64-bit PCI window takes what the CPU can address, between these two."""


@dataclass(frozen=True)
class Window:
    """`size` bytes of guest physical addresses from `base`."""

    base: int
    size: int

    @property
    def end(self) -> int:
        """First address after the window."""
        return self.base + self.size

    def overlaps(self, other: Window) -> bool:
        """True if both contain some address."""
        return self.base < other.end and other.base < self.end

    def __str__(self) -> str:
        return f"{self.base:#x}-{self.end - 1:#x}"


@dataclass(frozen=True)
class RegionRequest:
    """A wish for `size` bytes of device memory, at `address` or (None) wherever there is room.

    `alignment` (bytes) is what the device itself needs: virtio-mem's block size.
    """

    id: str
    size: int
    alignment: int
    address: int | None


@dataclass(frozen=True)
class AddressMap:
    """Who owns which guest physical addresses. Nothing in it overlaps."""

    ram: tuple[Window, ...]
    """Boot memory: low, and high if there is more than 3 GiB."""
    regions: dict[str, Window]
    """Device memory, by device id, in the order of the requests."""
    ecam: Window
    mmio32: Window
    mmio64: Window
    phys_bits: int
    """Width of a guest physical address."""

    def warnings(self) -> list[str]:
        """One line for each region of which the guest's CPU cannot address all."""
        limit = 1 << self.phys_bits
        return [
            f"{name}: region {window} ends beyond the guest's {self.phys_bits} address bits"
            f" ({limit - 1:#x}): its driver will refuse it; use a smaller size= or memaddr="
            for name, window in self.regions.items()
            if window.end > limit
        ]


def plan(
    memory: int, requests: Sequence[RegionRequest], phys_bits: int, *, reach: int | None = None
) -> AddressMap:
    """The address map for `memory` bytes of RAM and the device regions of `requests`.

    Explicit addresses are honoured first; the other regions take the lowest gaps above RAM. Regions
    may lie beyond the guest's 2**phys_bits if they are below 2**reach, the host's. Raises
    UsageError: memory below 64 MiB or not in whole pages, a device id used twice, an explicit
    address that is misaligned or taken, anything too high.
    """
    ram = _place_ram(memory)
    _check_reach("memory", ram[-1], phys_bits)
    explicit = [item for item in requests if item.address is not None]
    automatic = [item for item in requests if item.address is None]
    placed: dict[str, Window] = {}
    for item in [*explicit, *automatic]:
        if item.id in placed:
            raise UsageError(f"device id {item.id!r} is used twice: give each device its own id=")
        taken = [*ram, *placed.values()]
        window = _honour(item, taken) if item.address is not None else _fit(item, taken)
        _check_reach(f"{item.id}: region", window, reach or phys_bits)
        placed[item.id] = window
    return AddressMap(
        ram=ram,
        regions={item.id: placed[item.id] for item in requests},
        ecam=Window(platform.ECAM_BASE, platform.ECAM_SIZE),
        mmio32=Window(platform.MMIO32_BASE, platform.MMIO32_SIZE),
        mmio64=_place_mmio64([*ram, *placed.values()], phys_bits),
        phys_bits=phys_bits,
    )


def _place_ram(memory: int) -> tuple[Window, ...]:
    if memory < MINIMUM_MEMORY:
        raise UsageError(
            f"memory {format_size(memory)} is too little to boot Linux:"
            f" use {format_size(MINIMUM_MEMORY)} or more"
        )
    if memory % PAGE_SIZE:
        raise UsageError(
            f"memory {memory} is not a multiple of {PAGE_SIZE} bytes"
            f" (nearest: {align_down(memory, PAGE_SIZE)}, {align_up(memory, PAGE_SIZE)})"
        )
    low = Window(0, min(memory, platform.LOW_RAM_END))
    if low.size == memory:
        return (low,)
    return (low, Window(platform.HIGH_RAM_START, memory - low.size))


def _honour(item: RegionRequest, taken: Iterable[Window]) -> Window:
    """The window at the user's address. Raises UsageError."""
    assert item.address is not None
    alignment = max(item.alignment, LINUX_BLOCK_MINIMUM)
    if item.address % alignment:
        below = align_down(item.address, alignment)
        raise UsageError(
            f"{item.id}: memaddr {item.address:#x} is not a multiple of {format_size(alignment)},"
            f" Linux could not use all of it (nearest: {below:#x}, {below + alignment:#x})"
        )
    window = Window(item.address, item.size)
    if window.base < platform.HIGH_RAM_START:
        raise UsageError(
            f"{item.id}: memaddr {item.address:#x} lies below 4G, where RAM, PCI and the interrupt"
            f" controllers are: use {platform.HIGH_RAM_START:#x} or more, or leave memaddr= out"
        )
    for other in taken:
        if window.overlaps(other):
            raise UsageError(
                f"{item.id}: region {window} overlaps memory at {other}:"
                f" use another memaddr=, or leave it out"
            )
    return window


def _fit(item: RegionRequest, taken: Iterable[Window]) -> Window:
    """The lowest aligned window at or above 4 GiB that touches nothing in `taken`."""
    alignment = max(item.alignment, LINUX_BLOCK_MAXIMUM)
    window = Window(align_up(platform.HIGH_RAM_START, alignment), item.size)
    for other in sorted(taken, key=lambda one: one.base):
        if window.overlaps(other):
            window = Window(align_up(other.end, alignment), item.size)
    return window


def _place_mmio64(taken: Sequence[Window], phys_bits: int) -> Window:
    """The highest gap that the CPU can address, which is the one behind everything if possible."""
    bases = {max(platform.HIGH_RAM_START, align_up(one.end, GIB)) for one in taken}
    for base in sorted(bases, reverse=True):
        end = min([1 << phys_bits, *(one.base for one in taken if one.base >= base)])
        window = Window(base, min(MMIO64_SIZE, align_down(end, GIB) - base))
        if window.size >= MMIO64_MINIMUM and not any(window.overlaps(one) for one in taken):
            return window
    raise _too_high("64-bit PCI window", Window(max(bases), MMIO64_MINIMUM), phys_bits)


def _check_reach(what: str, window: Window, phys_bits: int) -> None:
    if window.end > 1 << phys_bits:
        raise _too_high(what, window, phys_bits)


def _too_high(what: str, window: Window, phys_bits: int) -> UsageError:
    return UsageError(
        f"{what} ends at {window.end:#x}, but this CPU addresses {phys_bits} bits,"
        f" up to {1 << phys_bits:#x}: use a smaller -m, size= or memaddr="
    )
