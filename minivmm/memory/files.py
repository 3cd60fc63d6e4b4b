"""The file behind shared guest memory: a memfd, one of huge pages, or a path of the user's.

How it is mapped is region.py's business.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from minivmm.errors import HostError
from minivmm.memory import libc
from minivmm.memory.libc import PAGE_SIZE
from minivmm.units import format_size

MOUNTS = Path("/proc/self/mountinfo")
_SECTOR = 512
"""Unit of st_blocks in bytes (stat(2))."""


class MemoryFile:
    """`size` bytes, all holes at first, behind descriptor `fd`. Raises HostError when made.

    `path`: a directory, for a nameless file in it; or a name for a new file, which is removed by
    close; or the name of an empty file, which is empty again after close. A file that holds
    anything is refused: it would be overwritten. Without `path` a memfd, of hugetlb pages if
    `page_size` (bytes) is not the base page's.
    """

    def __init__(self, size: int, *, page_size: int = PAGE_SIZE, path: str | None = None) -> None:
        self._created: str | None = None
        self.limited = path is not None
        """Can the file system run full before the host's memory does?"""
        if path is None:
            self.fd = _memfd(page_size)
        else:
            check_path(path)
            self.fd = self._open(path)
        try:
            os.ftruncate(self.fd, size)
            self.punch(0, size)
        except OSError as error:
            self.close()
            if error.errno == errno.EOPNOTSUPP:
                raise HostError(
                    f"path={path}: this file system cannot free parts of a file, so nothing could"
                    " be unplugged: use a path on tmpfs, ext4, xfs or btrfs"
                ) from error
            raise HostError(
                f"cannot make a file of {format_size(size)} for guest memory ({error.strerror}):"
                " use a smaller size=, or another path="
            ) from error

    def punch(self, offset: int, length: int) -> None:
        """Free [offset, offset + length) (bytes, page multiples) for all who map it; or OSError."""
        libc.punch_hole(self.fd, offset, length)

    def allocated(self) -> int:
        """Bytes that the file takes of memory, swap or, on a disk's file system, of the disk."""
        return os.fstat(self.fd).st_blocks * _SECTOR

    def allocated_in(self, offset: int, length: int) -> int:
        """Bytes of data in [offset, offset + length); two calls for each run. Not for hugetlb."""
        return sum(size for _, size in data_runs(self.fd, offset, length))

    def room(self) -> int | None:
        """Bytes that its file system could still take; None for no limit (statvfs(3))."""
        system = os.fstatvfs(self.fd)
        if not self.limited or not system.f_blocks:
            return None
        return system.f_bavail * system.f_frsize

    def close(self) -> None:
        """Give everything back and leave no file that was not there."""
        if self._created is not None:
            with suppress(OSError):
                Path(self._created).unlink()
        else:
            with suppress(OSError):
                os.ftruncate(self.fd, 0)
        os.close(self.fd)

    def _open(self, path: str) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            if Path(path).is_dir():
                return os.open(path, flags | os.O_TMPFILE, 0o600)
            if Path(path).exists():
                return os.open(path, flags)
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise HostError(
                f"path={path}: cannot open it for guest memory ({error.strerror}): name a new file"
                " in a directory that you may write"
            ) from error
        self._created = path
        return fd


def check_path(path: str) -> None:
    """Raises HostError if no memory can be kept at `path`; makes nothing there."""
    try:
        found = Path(path).stat()
    except FileNotFoundError:
        parent = Path(path).absolute().parent
        if not parent.is_dir():
            raise HostError(
                f"path={path}: there is no directory {parent}: make it, or name another"
            ) from None
        if not os.access(parent, os.W_OK | os.X_OK):
            raise HostError(
                f"path={path}: you may not make files in {parent}: name another directory"
            ) from None
    except OSError as error:
        raise HostError(f"path={path}: {error.strerror}: name a new file") from error
    else:
        if stat.S_ISREG(found.st_mode) and found.st_size:
            raise HostError(
                f"path={path}: the file holds {found.st_size} bytes, which guest memory would"
                " overwrite: remove it, or name a new file"
            )
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            raise HostError(f"path={path}: neither a file nor a directory: name a new file")
    system = file_system(path)
    if system.kind == "hugetlbfs":
        raise HostError(
            f"path={path}: hugetlbfs is not for backing=file: use backing=hugetlb and page-size="
        )


def data_runs(fd: int, offset: int, length: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what of [offset, offset + length) of a file is data; the rest is holes.

    Two calls for each run. File systems without holes, and hugetlbfs, say that all is data.
    """
    end = offset + length
    with suppress(OSError):  # ENXIO: no more data
        while (start := os.lseek(fd, offset, os.SEEK_DATA)) < end:
            offset = min(os.lseek(fd, start, os.SEEK_HOLE), end)
            yield start, offset - start


class FileSystem(NamedTuple):
    """Type ("tmpfs", "ext4", ...) and mount options of one mounted file system."""

    kind: str
    options: tuple[str, ...]


def file_system(path: str) -> FileSystem:
    """The file system that `path` is on, or would be if it existed (proc_pid_mountinfo(5))."""
    place = Path(path).absolute()
    device = (place if place.exists() else place.parent).stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in MOUNTS.read_text().splitlines():
        mount, _, system = line.partition(" - ")
        if mount.split()[2] == number:
            kind, _, options = system.split(" ", 2)
            return FileSystem(kind, tuple(options.split(",")))
    return FileSystem("unknown", ())


def _memfd(page_size: int) -> int:
    flags = os.MFD_CLOEXEC
    if page_size != PAGE_SIZE:
        flags |= os.MFD_HUGETLB | (page_size.bit_length() - 1) << os.MFD_HUGE_SHIFT
    try:
        return os.memfd_create("minivmm", flags)
    except OSError as error:
        raise HostError(
            f"cannot make guest memory of pages of {format_size(page_size)} ({error.strerror}):"
            " `minivmm doctor` lists the sizes that this host has"
        ) from error
