"""The Linux/x86 boot protocol: setup header of a bzImage and the zero page handed to the kernel.

Source: Linux Documentation/arch/x86/boot.rst (header, field offsets in the file) and zero-page.rst;
arch/x86/include/uapi/asm/bootparam.h. Reference F.9.
"""

from __future__ import annotations

from enum import IntFlag

from minivmm.spec.e820 import E820Entry
from minivmm.spec.record import Record, pad, raw, record, u8, u16, u32, u64

SETUP_HEADER_OFFSET = 0x1F1
"""Of the setup header, both in the file and in the zero page."""
SETUP_HEADER_LIMIT = 0x290
"""The zero page's next field; a header that claims to reach beyond is damaged."""
JUMP_END = 0x202
"""The header ends here plus the byte before (the displacement of its jump instruction)."""
SECTOR_SIZE = 512
DEFAULT_SETUP_SECTS = 4
"""What setup_sects = 0 means."""
PARAGRAPH_SIZE = 16
"""Unit of syssize, in bytes."""

BOOT_FLAG = 0xAA55
HEADER_MAGIC = int.from_bytes(b"HdrS", "little")
MINIMUM_VERSION = 0x020C
"""Protocol 2.12 (Linux 3.8): the first with xloadflags."""
LOADER_UNDEFINED = 0xFF
"""type_of_loader of a loader without a registered number."""
ENTRY_64_OFFSET = 0x200
"""Of the 64-bit entry point in the protected-mode code."""
E820_MAX_ENTRIES = 128


class LoadFlags(IntFlag):
    """loadflags of the setup header."""

    LOADED_HIGH = 1 << 0


class XloadFlags(IntFlag):
    """xloadflags of the setup header."""

    KERNEL_64 = 1 << 0


@record
class SetupHeader(Record):
    """Setup header as of protocol 2.15, from file offset 0x1F1; sizes in bytes unless noted."""

    setup_sects: int = u8()
    """Real-mode code after the boot sector, in sectors of 512 bytes."""
    root_flags: int = u16()
    syssize: int = u32()
    """Protected-mode code, in paragraphs of 16 bytes."""
    ram_size: int = u16()
    vid_mode: int = u16()
    root_dev: int = u16()
    boot_flag: int = u16()
    jump: int = u16()
    header: int = u32()
    version: int = u16()
    """Major << 8 | minor."""
    realmode_swtch: int = u32()
    start_sys_seg: int = u16()
    kernel_version: int = u16()
    type_of_loader: int = u8()
    loadflags: int = u8()
    setup_move_size: int = u16()
    code32_start: int = u32()
    ramdisk_image: int = u32()
    ramdisk_size: int = u32()
    bootsect_kludge: int = u32()
    heap_end_ptr: int = u16()
    ext_loader_ver: int = u8()
    ext_loader_type: int = u8()
    cmd_line_ptr: int = u32()
    initrd_addr_max: int = u32()
    """Highest address an initrd byte may have."""
    kernel_alignment: int = u32()
    relocatable_kernel: int = u8()
    min_alignment: int = u8()
    xloadflags: int = u16()
    cmdline_size: int = u32()
    """Longest command line, without its terminating zero."""
    hardware_subarch: int = u32()
    hardware_subarch_data: int = u64()
    payload_offset: int = u32()
    payload_length: int = u32()
    setup_data: int = u64()
    pref_address: int = u64()
    """Where the kernel would like to be loaded."""
    init_size: int = u32()
    """Memory from the load address on that the kernel needs before it reads its memory map."""
    handover_offset: int = u32()
    kernel_info_offset: int = u32()


@record
class BootParams(Record):
    """The zero page (4 KiB): struct boot_params, with what a 64-bit boot loader fills in."""

    legacy_070: bytes = pad(0x70)
    acpi_rsdp_addr: int = u64()
    legacy_078: bytes = pad(0x0C0 - 0x078)
    ext_ramdisk_image: int = u32()
    """Upper halves of ramdisk_image, ramdisk_size and cmd_line_ptr."""
    ext_ramdisk_size: int = u32()
    ext_cmd_line_ptr: int = u32()
    legacy_0cc: bytes = pad(0x1E8 - 0x0CC)
    e820_entries: int = u8()
    sentinel_1e9: bytes = pad(SETUP_HEADER_OFFSET - 0x1E9)
    """Byte 0x1EF must be 0: it proves that the page was cleared."""
    setup_header: bytes = raw(SETUP_HEADER_LIMIT - SETUP_HEADER_OFFSET)
    legacy_290: bytes = pad(0x2D0 - SETUP_HEADER_LIMIT)
    e820_table: bytes = raw(E820_MAX_ENTRIES * E820Entry.SIZE)
    legacy_cd0: bytes = pad(0x1000 - 0xCD0)
