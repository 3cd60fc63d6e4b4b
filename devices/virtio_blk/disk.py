"""Disk: a raw file, or a block device of the host, as the bytes of a disk.

Its methods may take long, need no lock, and raise OSError for what the host refuses. Requests and
sectors are the business of others.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable

from minivmm.errors import HostError
from minivmm.memory import libc
from minivmm.spec.virtio_blk import SECTOR
from minivmm.units import MIB, align_down

_ZEROES = bytes(MIB)
_MAGIC = {b"QFI\xfb": "qcow2", b"KDMV": "vmdk", b"vhdxfile": "vhdx", b"<<< Oracle VM": "vdi"}
"""How images begin that are not raw, and what qemu-img calls them."""
_CANNOT = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV)
"""What fallocate(2) says where there is no such operation on the file."""


class Disk:
    """The file at `path`, held open and locked against other machines; `name` is for messages.

    Raises HostError if it is missing, not a disk, write-protected (unless `readonly`), empty, not
    whole sectors, an image of another format (unless `raw`: take it as it is), or in use.
    """

    def __init__(self, path: str, *, readonly: bool, name: str, raw: bool = False) -> None:
        self._what = f"{name}: disk {path}"
        self.readonly = readonly
        self._fd = self._open(path)
        try:
            self.size = self._check_size(path)
            if not raw:
                self._check_format(path)
            self._lock()
        except BaseException:
            self.close()
            raise

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes at `offset`. EIO if the file has become shorter than it was."""
        pieces: list[bytes] = []
        while length:
            piece = os.pread(self._fd, length, offset)
            if not piece:
                raise OSError(errno.EIO, "the file ends early")
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Store `data` at `offset`."""
        rest = memoryview(data)
        while rest:
            done = os.pwrite(self._fd, rest, offset)
            offset += done
            rest = rest[done:]

    def flush(self) -> None:
        """Return once everything written so far is on stable storage."""
        if not self.readonly:
            os.fdatasync(self._fd)

    def discard(self, offset: int, length: int) -> None:
        """The content of these bytes is wanted no more; free them if the file system can."""
        self._attempt(libc.punch_hole, offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make these bytes zeroes; with `unmap` they need not stay allocated."""
        if self._attempt(libc.punch_hole if unmap else libc.zero_range, offset, length):
            return
        for at in range(offset, offset + length, len(_ZEROES)):
            self.write(at, memoryview(_ZEROES)[: offset + length - at])

    @property
    def changed(self) -> int:
        """When the file was last written, in nanoseconds since 1970; 0 for a block device."""
        found = os.fstat(self._fd)
        return found.st_mtime_ns if stat.S_ISREG(found.st_mode) else 0

    def close(self) -> None:
        """Let go of the file. Harmless when repeated."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _attempt(self, call: Callable[[int, int, int], None], offset: int, length: int) -> bool:
        """False if there is no such call for this file."""
        if not length:
            return True
        try:
            call(self._fd, offset, length)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            return False
        return True

    def _open(self, path: str) -> int:
        flags = os.O_CLOEXEC | (os.O_RDONLY if self.readonly else os.O_RDWR)
        try:
            mode = os.stat(path).st_mode  # noqa: PTH116 - a path may have no name that pathlib takes
            if stat.S_ISBLK(mode) and not self.readonly:
                flags |= os.O_EXCL  # EBUSY if this host has it mounted, open(2)
            if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
                raise HostError(
                    f"{self._what} is no file with bytes to serve: name a regular file or a block"
                    " device"
                )
            # The superuser may write to any file, but its owner meant something.
            if stat.S_ISREG(mode) and not self.readonly and not mode & 0o222:
                raise PermissionError(errno.EACCES, "")
            return os.open(path, flags)
        except FileNotFoundError:
            raise HostError(
                f"{self._what} does not exist: `truncate -s 1G {path}` makes an empty one"
            ) from None
        except OSError as error:
            if not self.readonly and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise HostError(
                    f"{self._what} cannot be written: use readonly=on, or allow it (chmod u+w)"
                ) from None
            if error.errno == errno.EBUSY:
                raise HostError(
                    f"{self._what} is in use by this host: unmount it, or use readonly=on"
                ) from None
            raise HostError(
                f"{self._what} cannot be opened: {error.strerror}: name another file"
            ) from None
        except ValueError:  # a path with a zero byte
            raise HostError(f"{self._what!r} is no path: name another file") from None

    def _check_size(self, path: str) -> int:
        size = os.lseek(self._fd, 0, os.SEEK_END)
        if not size:
            raise HostError(f"{self._what} is empty: give it a size (`truncate -s 1G {path}`)")
        if size % SECTOR:
            below = align_down(size, SECTOR)
            near = ", ".join(str(one) for one in (below, below + SECTOR) if one)
            raise HostError(
                f"{self._what} has {size} bytes, which is not a multiple of {SECTOR} (nearest:"
                f" {near}): is it raw? `truncate -s {below + SECTOR} {path}` makes it one"
            )
        return size

    def _check_format(self, path: str) -> None:
        """What a guest wrote to such an image as if it were raw would destroy it."""
        begin = os.pread(self._fd, SECTOR, 0)
        for magic, kind in _MAGIC.items():
            if begin.startswith(magic):
                raise HostError(
                    f"{self._what} is a {kind} image: `qemu-img convert -O raw {path} {path}.raw`"
                    " makes a raw one; format=raw takes it as it is"
                )

    def _lock(self) -> None:
        """Two machines that write to one disk destroy what is on it; many may read it."""
        kind = fcntl.LOCK_SH if self.readonly else fcntl.LOCK_EX
        try:
            fcntl.flock(self._fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HostError(
                f"{self._what} is in use by another disk, of this machine or another one: use"
                " readonly=on in all of them, or copy the file"
            ) from None
        except OSError as error:
            if error.errno not in _CANNOT:  # some file systems know no locks
                raise HostError(f"{self._what} cannot be locked: {error.strerror}") from None
