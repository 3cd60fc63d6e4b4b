"""What a PVH loader hands to the kernel: struct hvm_start_info and its tables.

Source: Xen public header xen/include/public/arch-x86/hvm/start_info.h; Linux
include/xen/interface/hvm/start_info.h. Reference F.10. All addresses are guest physical.
"""

from __future__ import annotations

from minivmm.spec.record import Record, pad, record, u32, u64

START_MAGIC = 0x336EC578
START_VERSION = 1
"""The first version with a memory map."""


@record
class StartInfo(Record):
    """56 bytes; EBX points here at the entry."""

    magic: int = u32(START_MAGIC)
    version: int = u32(START_VERSION)
    flags: int = u32()
    nr_modules: int = u32()
    modlist_paddr: int = u64()
    cmdline_paddr: int = u64()
    rsdp_paddr: int = u64()
    memmap_paddr: int = u64()
    memmap_entries: int = u32()
    reserved: bytes = pad(4)


@record
class ModuleEntry(Record):
    """32 bytes: a module; module 0 is the initrd."""

    paddr: int = u64()
    size: int = u64()
    cmdline_paddr: int = u64()
    reserved: bytes = pad(8)


@record
class MemmapEntry(Record):
    """24 bytes: `size` bytes from `addr` are of an E820 type."""

    addr: int = u64()
    size: int = u64()
    type: int = u32()
    reserved: bytes = pad(4)
