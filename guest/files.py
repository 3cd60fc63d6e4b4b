"""Reading the files that make up a guest; what they contain is others' business."""

from __future__ import annotations

from pathlib import Path

from minivmm.errors import ImageError
from minivmm.units import GIB, format_size

MOST = 2 * GIB
"""Bytes of the largest file that is read: both boot protocols keep kernel and initrd below 2 GiB,
and somebody who names a disk image should not have to wait until it is in memory."""


def read_image(path: Path, what: str) -> bytes:
    """Content of the file `path`, called `what` in messages. Raises ImageError.

    Pipes and devices are refused unread: they may never end.
    """
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise ImageError(f"{what} {path} is a directory: name a file")
        if not path.is_file():
            raise ImageError(f"{what} {path} is a device or pipe: name a regular file")
        if size > MOST:
            raise ImageError(
                f"{what} {path} has {size} bytes, more than a guest can load"
                f" ({format_size(MOST)}): is it another file than you meant?"
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "its name has a zero byte"
        raise ImageError(f"cannot read {what} {path}: {why}: name another file") from None
