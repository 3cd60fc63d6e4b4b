"""Is there RAM below 4 GiB for kernel and initrd, and where does the initrd go?"""

from __future__ import annotations

from minivmm.boot import places
from minivmm.errors import ImageError
from minivmm.memory.layout import AddressMap, Window
from minivmm.spec import platform
from minivmm.units import MIB, align_down, format_size

PAGE_SIZE = 4096
_SMALLEST_ADVICE = 128 * MIB


def check_kernel(address_map: AddressMap, kernel: Window, name: str) -> None:
    """Raises ImageError unless `kernel`, the memory a kernel needs, is low RAM above 1 MiB."""
    low = address_map.ram[0]
    if kernel.base < places.KERNEL_START:
        raise ImageError(
            f"{name}: wants to be loaded at {kernel.base:#x}, below 1 MiB, where the loader keeps"
            f" its tables: use a kernel with CONFIG_PHYSICAL_START of 1 MiB or more"
        )
    if kernel.end > low.end:
        raise ImageError(
            f"{name}: needs memory {kernel}, but low RAM ends at {low.end:#x}:"
            f" {_more_memory(kernel.end)}"
        )


def place_initrd(
    address_map: AddressMap, size: int, *, kernel: Window, highest: int, name: str
) -> int:
    """Guest physical address for an initrd of `size` bytes: page aligned, as high as possible.

    `highest` is the last address the kernel accepts, `kernel` what the initrd must not touch: it
    goes above. Raises ImageError if it is empty or there is no room.
    """
    if size == 0:
        raise ImageError("initrd is empty (0 bytes): build it again, or boot without one")
    low_end = address_map.ram[0].end
    ceiling = min(low_end, highest + 1)
    address = align_down(ceiling - size, PAGE_SIZE)
    if address >= kernel.end:
        return address
    remedy = _more_memory(kernel.end + size + PAGE_SIZE, most=highest + 1)
    raise ImageError(
        f"initrd of {size} bytes does not fit between the end of {name} at {kernel.end:#x} and"
        f" {ceiling:#x}: {remedy}"
    )


def _more_memory(needed: int, most: int = platform.LOW_RAM_END) -> str:
    """Remedy for something that ends at `needed` bytes, and could not end above `most` anyway."""
    most = min(most, platform.LOW_RAM_END)
    if needed > most:
        return f"no -m is enough, it must end below {most:#x}: use a smaller one"
    advice = _SMALLEST_ADVICE
    while advice < needed:
        advice *= 2
    return f"use -m {format_size(advice)} or more"
