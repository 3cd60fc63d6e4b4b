"""Starts a second kernel from within a guest that has neither kexec-tools nor a compiler.

A program that does one system call is assembled here and fed to the guest; the kernel and the
initrd to start come with the guest's own initrd.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

from harness import Guest

from minivmm.errors import GuestFailure
from minivmm.guest.build import build_initramfs
from minivmm.guest.initramfs import Archive
from minivmm.guest.kernels import find

DIRECTORY = "/next"
KERNEL, INITRD = f"{DIRECTORY}/kernel", f"{DIRECTORY}/initrd"
"""Files in a guest that was booted with `write_initrd`."""

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


def write_initrd(path: Path, kernel: str) -> None:
    """Our initramfs for `kernel`, with that kernel and the plain initramfs in it as files."""
    found = find(kernel)
    plain = build_initramfs(found.release, found.modules)
    files = Archive()
    files.add_file(KERNEL, found.image.read_bytes())
    files.add_file(INITRD, plain)
    path.write_bytes(plain + files.build())  # Linux unpacks one archive after the other


def load(guest: Guest, *, crash: bool = False) -> None:
    """Load the kernel in the guest's files, to be started by `start` or by a crash.

    It gets the command line of the running kernel, and the files to load yet another. A crash
    kernel does without: it lives in the little memory that `crashkernel=` reserved.
    """
    words = guest.shell("cat /proc/cmdline").split()
    initrd = INITRD
    if crash:
        words = [word for word in words if not word.startswith("crashkernel=")]
    else:
        initrd = "/tmp/initrd"
        files = f"find .{DIRECTORY} | cpio -o -H newc"
        guest.shell(f"{{ cat {INITRD}; cd / && {files}; }} >{initrd}")
    line = " ".join(words).encode() + b"\0"
    program = syscall_program(_KEXEC_FILE_LOAD, 3, 4, len(line), line, _ON_CRASH if crash else 0)
    _put(guest, "load", program)
    guest.shell(f"/tmp/load 3<{KERNEL} 4<{initrd}")


def start(guest: Guest) -> None:
    """Start the loaded kernel, a moment after this returned."""
    _put(guest, "start", syscall_program(_REBOOT, *_REBOOT_MAGIC, _REBOOT_KEXEC, 0))
    end_kernel(guest, "/tmp/start")


def end_kernel(guest: Guest, command: str) -> None:
    """Run `command`, which ends the running kernel, a moment later.

    Where the host is busy, the kernel may be gone before it was told that the shell has ended.
    """
    with suppress(GuestFailure):
        guest.shell(f"(sleep 0.5; {command}) &")


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


def _put(guest: Guest, name: str, program: bytes) -> None:
    done = guest.run("sh", "-c", f"cat >/tmp/{name} && chmod +x /tmp/{name}", stdin=program)
    assert done.status == 0, done
