"""The directory of a snapshot in the making: a temporary one beside it, that becomes it at the end.

So there is a whole snapshot or none, whatever happens meanwhile. What is in its files is not known
here.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from minivmm.errors import HostError, UsageError
from minivmm.snapshot.format import MACHINE_FILE

_SUFFIX = ".part-"


class Place:
    """Where the snapshot `path` is made. Raises UsageError if it is there, and HostError.

    `abandon` or `finish` has to follow.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        """Where it will be."""
        if os.path.lexists(self.path):
            raise UsageError(f"{path} exists: give a snapshot a directory that does not, or rm -r")
        prefix = f".{self.path.name}{_SUFFIX}"
        try:
            self._sweep(prefix)
            self.work = Path(tempfile.mkdtemp(prefix=prefix, dir=self.path.parent))
            """Where its files are until then."""
            self._lock = _lock(self.work)
        except OSError as error:
            raise HostError(
                f"{path.parent} cannot take a snapshot ({error.strerror}): give a directory in one"
                " that you may write to"
            ) from error

    def finish(self, machine: bytes) -> None:
        """Write the machine file; then all of it is on the disk, and then it is the snapshot.

        The other files are written by then. Raises HostError, after which `abandon` has to follow.
        """
        try:
            (self.work / MACHINE_FILE).write_bytes(machine)
            for file in self.work.iterdir():
                _sync(file)
            _sync(self.work)
            self.work.rename(self.path)
            _sync(self.path.parent)
        except OSError as error:
            raise HostError(f"{self.path} cannot be written ({error.strerror})") from error
        self._unlock()

    def abandon(self) -> None:
        """Leave nothing behind. Harmless when repeated, and after `finish`."""
        if self._lock >= 0:
            shutil.rmtree(self.work, ignore_errors=True)
            self._unlock()

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _sweep(self, prefix: str) -> None:
        """Remove what is left of attempts whose process was killed: nobody has it locked."""
        for left in self.path.parent.iterdir():
            if left.name.startswith(prefix):
                with suppress(OSError):
                    os.close(_lock(left))
                    shutil.rmtree(left, ignore_errors=True)


def _lock(directory: Path) -> int:
    """A descriptor that has it locked until it is closed. Raises OSError if another has."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
