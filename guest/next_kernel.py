"""What a guest without kexec-tools needs to start a second kernel: files, and programs.

A program that does one system call is assembled here, and the kernel and the initrd to start come
with the guest's own initrd. Bringing the program into a guest and running it is the caller's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from minivmm.guest.build import build_initramfs
from minivmm.guest.initramfs import Archive
from minivmm.guest.kernels import Kernel

DIRECTORY = "/next"
KERNEL, INITRD = f"{DIRECTORY}/kernel", f"{DIRECTORY}/initrd"
"""Files in a guest that was booted with `initrd_with_kernel`."""

_KEXEC_FILE_LOAD, _REBOOT = 320, 169
_ON_CRASH = 2  # KEXEC_FILE_ON_CRASH, include/uapi/linux/kexec.h
_REBOOT_MAGIC = (0xFEE1DEAD, 672274793)
_REBOOT_KEXEC = 0x45584543  # LINUX_REBOOT_CMD_KEXEC, include/uapi/linux/reboot.h

_BASE = 0x400000
_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_LOAD_REGISTER = (b"\x48\xbf", b"\x48\xbe", b"\x48\xba", b"\x49\xba", b"\x49\xb8", b"\x49\xb9")
"""movabs to rdi, rsi, rdx, r10, r8, r9: where a system call expects its arguments."""
_CALL_AND_EXIT = bytes.fromhex("0f05 f7d8 89c7 b83c000000 0f05")
"""syscall; neg eax; mov edi, eax; mov eax, 60; syscall: exits with the negated result."""


def initrd_with_kernel(kernel: Kernel, drivers: Iterable[str] = ()) -> bytes:
    """Our initramfs for `kernel`, with that kernel and the plain initramfs in it as files."""
    plain = build_initramfs(kernel.release, kernel.modules, drivers)
    files = Archive()
    files.add_file(KERNEL, kernel.image.read_bytes())
    files.add_file(INITRD, plain)
    return plain + files.build()  # Linux unpacks one archive after the other


def load_program(command_line: str, *, on_crash: bool = False) -> bytes:
    """A program that loads the kernel on its descriptor 3 with the initrd on descriptor 4."""
    line = command_line.encode() + b"\0"
    flags = _ON_CRASH if on_crash else 0
    return syscall_program(_KEXEC_FILE_LOAD, 3, 4, len(line), line, flags)


def start_program() -> bytes:
    """A program that starts the loaded kernel, at once and without goodbye."""
    return syscall_program(_REBOOT, *_REBOOT_MAGIC, _REBOOT_KEXEC, 0)


def syscall_program(number: int, *arguments: int | bytes) -> bytes:
    """A static x86-64 ELF that does system call `number` and exits with 0 or the errno.

    For calls that return nothing but 0 or an error. Bytes among the (up to six) arguments are
    passed as a pointer to them.
    """
    headers = _ELF_HEADER.size + _PROGRAM_HEADER.size
    data_at = _BASE + headers + 10 * (len(arguments) + 1) + len(_CALL_AND_EXIT)
    code, data = b"", b""
    for register, argument in zip(_LOAD_REGISTER, arguments, strict=False):
        if isinstance(argument, bytes):
            value, data = data_at + len(data), data + argument
        else:
            value = argument
        code += register + struct.pack("<Q", value)
    code += b"\x48\xb8" + struct.pack("<Q", number) + _CALL_AND_EXIT
    size = headers + len(code) + len(data)
    entry = _BASE + headers
    segments = _ELF_HEADER.size
    sizes = (_ELF_HEADER.size, _PROGRAM_HEADER.size, 1, 0, 0, 0)
    # An executable for x86-64 (elf(5)): the whole file is one segment, to be read and executed.
    elf = _ELF_HEADER.pack(b"\x7fELF\x02\x01\x01", 2, 62, 1, entry, segments, 0, 0, *sizes)
    segment = _PROGRAM_HEADER.pack(1, 0b101, 0, _BASE, _BASE, size, size, 0x1000)
    return elf + segment + code + data
