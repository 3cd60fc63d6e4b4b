"""Tells kernels from everything else that people pass as one, and starts the right loader."""

from __future__ import annotations

from minivmm.boot import bzimage, elf
from minivmm.errors import ImageError
from minivmm.memory.guest import GuestMemory
from minivmm.memory.layout import AddressMap
from minivmm.spec import bootparams
from minivmm.spec import elf as elf_spec
from minivmm.spec.x86 import CpuState

_REMEDY = "pass an x86-64 bzImage (/boot/vmlinuz-*) or vmlinux"

_FOREIGN: tuple[tuple[int, bytes, str], ...] = (
    (0x38, b"ARM\x64", "an ARM64 kernel Image"),
    (0x38, b"RSC\x05", "a RISC-V kernel Image"),
    (0, b"\x1f\x8b", "gzip-compressed data"),
    (0, b"\xfd7zXZ\0", "xz-compressed data"),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed data"),
    (0, b"BZh", "bzip2-compressed data"),
    (0, b"070701", "a cpio archive (an initramfs? then use --initrd)"),
    (0, b"!<arch>\n", "an ar archive or Debian package"),
    (0, b"\x27\x05\x19\x56", "a U-Boot image"),
    (0, b"QFI\xfb", "a qcow2 disk image"),
    (0, b"MZ", "an EFI program, or the first bytes of a kernel"),
)
"""(offset, bytes there, what that is), the most telling first."""

_TEXT = frozenset(b"\t\n\r\f\x1b") | frozenset(range(0x20, 0x7F))


def load_kernel(
    memory: GuestMemory,
    address_map: AddressMap,
    *,
    kernel: bytes,
    name: str,
    cmdline: str,
    initrd: bytes | None,
    rsdp: int,
) -> CpuState:
    """Put `kernel` (file content; `name` for messages), command line and initrd into guest memory.

    RAM must read as zeroes where nothing was written yet. `rsdp` is the gpa of the ACPI root
    pointer. Returns the boot CPU's state. Raises ImageError, one line with a remedy.
    """
    if kernel.startswith(elf_spec.MAGIC):
        loader = elf.load
    elif _has_boot_mark(kernel):
        loader = bzimage.load
    else:
        raise ImageError(f"{name}: not a kernel but {looks_like(kernel)}: {_REMEDY}")
    return loader(
        memory,
        address_map,
        kernel=kernel,
        name=name,
        cmdline=cmdline,
        initrd=initrd,
        rsdp=rsdp,
    )


def looks_like(data: bytes) -> str:
    """A guess, for messages, of what a file that is no kernel contains."""
    if not data:
        return "an empty file"
    for offset, magic, what in _FOREIGN:
        if data[offset : offset + len(magic)] == magic:
            return what
    if not any(data[:4096]):
        return "a file of zeroes"
    if _TEXT.issuperset(data[:512]):
        return "a text file"
    return f"unknown data (starts with {data[:4].hex(' ')})"


def _has_boot_mark(kernel: bytes) -> bool:
    """True if either mark of a setup header is there; the loader complains about the other."""
    flag = kernel[0x1FE:0x200] == bootparams.BOOT_FLAG.to_bytes(2, "little")
    magic = kernel[0x202:0x206] == bootparams.HEADER_MAGIC.to_bytes(4, "little")
    return flag or magic
