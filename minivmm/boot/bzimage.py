"""Loads a bzImage by the 64-bit boot protocol: checks it, lays it out, fills the zero page.

Source: Linux Documentation/arch/x86/boot.rst. Reference F.9.
"""

from __future__ import annotations

import dataclasses

from minivmm.boot import cpu, places, room
from minivmm.boot.cmdline import encode_cmdline
from minivmm.boot.e820 import memory_map
from minivmm.errors import ImageError
from minivmm.memory.guest import GuestMemory
from minivmm.memory.layout import AddressMap, Window
from minivmm.spec.bootparams import (
    BOOT_FLAG,
    DEFAULT_SETUP_SECTS,
    ENTRY_64_OFFSET,
    HEADER_MAGIC,
    JUMP_END,
    LOADER_UNDEFINED,
    MINIMUM_VERSION,
    PARAGRAPH_SIZE,
    SECTOR_SIZE,
    SETUP_HEADER_LIMIT,
    SETUP_HEADER_OFFSET,
    BootParams,
    LoadFlags,
    SetupHeader,
    XloadFlags,
)
from minivmm.spec.x86 import CpuState
from minivmm.units import align_up, is_power_of_two

_DAMAGED = "the file is damaged, copy or download it again"


@dataclasses.dataclass(frozen=True)
class BzImage:
    """A checked bzImage."""

    name: str
    header: SetupHeader
    header_size: int
    """Bytes of the header that this kernel has; later fields of SetupHeader mean nothing to it."""
    header_tail: bytes
    """Header fields newer than SetupHeader."""
    code: bytes
    """The protected-mode code."""

    @property
    def window(self) -> Window:
        """Where the kernel goes, and the memory it needs there."""
        header = self.header
        base = header.pref_address
        if header.relocatable_kernel:
            # Linux decompresses to pref_address or above anyway: loading lower gains nothing.
            base = align_up(max(base, places.KERNEL_START), header.kernel_alignment)
        return Window(base, max(header.init_size, len(self.code)))


def parse(kernel: bytes, name: str) -> BzImage:
    """Check `kernel` (file content). Raises ImageError, naming the file `name`."""
    if len(kernel) < SETUP_HEADER_LIMIT:
        raise ImageError(f"{name}: only {len(kernel)} bytes long: {_DAMAGED}")
    header = SetupHeader.parse(kernel[SETUP_HEADER_OFFSET:])
    _check_marks(header, name)
    _check_features(header, name)
    header_end = JUMP_END + (header.jump >> 8)
    known_end = SETUP_HEADER_OFFSET + SetupHeader.SIZE
    if not SetupHeader.OFFSETS["handover_offset"] <= header_end - SETUP_HEADER_OFFSET:
        raise ImageError(f"{name}: setup header ends at {header_end:#x}, too early: {_DAMAGED}")
    if header_end > SETUP_HEADER_LIMIT:
        raise ImageError(f"{name}: setup header ends at {header_end:#x}, too late: {_DAMAGED}")
    return BzImage(
        name=name,
        header=header,
        header_size=header_end - SETUP_HEADER_OFFSET,
        header_tail=kernel[known_end:header_end],
        code=_protected_mode_code(kernel, header, name),
    )


def load(
    memory: GuestMemory,
    address_map: AddressMap,
    *,
    kernel: bytes,
    name: str,
    cmdline: str,
    initrd: bytes | None,
    rsdp: int,
) -> CpuState:
    """Write everything into guest memory; returns the 64-bit entry state. Raises ImageError."""
    image = parse(kernel, name)
    window = image.window
    room.check_kernel(address_map, window, name)
    memory.write(places.CMDLINE, encode_cmdline(cmdline, image.header.cmdline_size))
    memory.write(window.base, image.code)
    initrd_address = 0
    if initrd is not None:
        initrd_address = room.place_initrd(
            address_map,
            len(initrd),
            kernel=window,
            highest=image.header.initrd_addr_max,
            name=name,
        )
        memory.write(initrd_address, initrd)
    header = dataclasses.replace(
        image.header,
        type_of_loader=LOADER_UNDEFINED,
        code32_start=window.base,
        ramdisk_image=initrd_address,
        ramdisk_size=len(initrd or b""),
        cmd_line_ptr=places.CMDLINE,
    )
    memory.store(places.ZERO_PAGE, _boot_params(image, header, address_map, rsdp))
    return cpu.long_mode(memory, entry=window.base + ENTRY_64_OFFSET, zero_page=places.ZERO_PAGE)


def _boot_params(
    image: BzImage, header: SetupHeader, address_map: AddressMap, rsdp: int
) -> BootParams:
    entries = memory_map(address_map)
    header_bytes = header.build()[: image.header_size] + image.header_tail
    return BootParams(
        acpi_rsdp_addr=rsdp,
        e820_entries=len(entries),
        setup_header=header_bytes.ljust(SETUP_HEADER_LIMIT - SETUP_HEADER_OFFSET, b"\0"),
        e820_table=b"".join(entry.build() for entry in entries).ljust(
            BootParams.OFFSETS["legacy_cd0"] - BootParams.OFFSETS["e820_table"], b"\0"
        ),
    )


def _check_marks(header: SetupHeader, name: str) -> None:
    if header.boot_flag != BOOT_FLAG:
        raise ImageError(
            f"{name}: boot flag is {header.boot_flag:#06x}, not {BOOT_FLAG:#06x}: {_DAMAGED}"
        )
    if header.header != HEADER_MAGIC:
        raise ImageError(
            f'{name}: has a boot sector but no "HdrS" setup header, so it is no Linux kernel:'
            f" pass a bzImage (/boot/vmlinuz-*)"
        )
    if header.version < MINIMUM_VERSION:
        major, minor = header.version >> 8, header.version & 0xFF
        raise ImageError(
            f"{name}: boot protocol {major}.{minor:02}, but 2.12 is needed for the 64-bit entry:"
            f" use Linux 3.8 or later"
        )


def _check_features(header: SetupHeader, name: str) -> None:
    if not header.xloadflags & XloadFlags.KERNEL_64:
        raise ImageError(
            f"{name}: no 64-bit entry (xloadflags {header.xloadflags:#x}), a 32-bit kernel:"
            f" use an x86-64 kernel"
        )
    if not header.loadflags & LoadFlags.LOADED_HIGH:
        raise ImageError(f"{name}: a zImage, made to be loaded below 1 MiB: build it as bzImage")
    if header.relocatable_kernel and not is_power_of_two(header.kernel_alignment):
        raise ImageError(
            f"{name}: kernel alignment {header.kernel_alignment:#x} is no power of two: {_DAMAGED}"
        )


def _protected_mode_code(kernel: bytes, header: SetupHeader, name: str) -> bytes:
    """The syssize paragraphs behind the setup code; a signature may follow in the file."""
    start = (1 + (header.setup_sects or DEFAULT_SETUP_SECTS)) * SECTOR_SIZE
    end = start + header.syssize * PARAGRAPH_SIZE
    if len(kernel) < end:
        raise ImageError(
            f"{name}: truncated, {len(kernel)} bytes of the {end} its header promises:"
            f" copy or download it again"
        )
    if end - start <= ENTRY_64_OFFSET:
        raise ImageError(f"{name}: only {end - start} bytes of code: {_DAMAGED}")
    return kernel[start:end]
