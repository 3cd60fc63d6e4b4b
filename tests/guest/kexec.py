"""Starts a second kernel from within a guest, by what minivmm.guest.next_kernel makes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from harness import Guest

from minivmm.errors import GuestFailure
from minivmm.guest.kernels import find
from minivmm.guest.next_kernel import (
    DIRECTORY,
    INITRD,
    KERNEL,
    initrd_with_kernel,
    load_program,
    start_program,
)


def write_initrd(path: Path, kernel: str) -> None:
    """Our initramfs for `kernel`, with that kernel and the plain initramfs in it as files."""
    path.write_bytes(initrd_with_kernel(find(kernel)))


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
    _put(guest, "load", load_program(" ".join(words), on_crash=crash))
    guest.shell(f"/tmp/load 3<{KERNEL} 4<{initrd}")


def start(guest: Guest) -> None:
    """Start the loaded kernel, a moment after this returned."""
    _put(guest, "start", start_program())
    end_kernel(guest, "/tmp/start")


def end_kernel(guest: Guest, command: str) -> None:
    """Run `command`, which ends the running kernel, a moment later.

    Where the host is busy, the kernel may be gone before it was told that the shell has ended.
    """
    with suppress(GuestFailure):
        guest.shell(f"(sleep 0.5; {command}) &")


def await_next(guest: Guest) -> None:
    """Wait until the running kernel is gone and the next one runs commands."""
    guest.wait_until(lambda: not guest.info()["agent"]["ready"], "end of the kernel")
    assert guest.run("true", timeout=120).status == 0


def _put(guest: Guest, name: str, program: bytes) -> None:
    done = guest.run("sh", "-c", f"cat >/tmp/{name} && chmod +x /tmp/{name}", stdin=program)
    assert done.status == 0, done
