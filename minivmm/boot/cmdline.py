"""The kernel command line as bytes. What stands in it is the machine's choice."""

from __future__ import annotations

from minivmm.boot import places
from minivmm.errors import ImageError

LINUX_LIMIT = 2047
"""COMMAND_LINE_SIZE of x86 without the final zero: a PVH kernel cuts a longer one silently."""


def encode_cmdline(text: str, limit: int) -> bytes:
    """`text` in ASCII with its terminating zero, for a kernel that takes `limit` characters.

    Raises ImageError if it is longer, or has a character that would not survive the way.
    """
    bad = next((char for char in text if not 0x20 <= ord(char) <= 0x7E and char != "\t"), None)
    if bad is not None:
        raise ImageError(
            f"kernel command line contains {bad!r}, which the kernel could not read:"
            f" use printable ASCII in --append"
        )
    limit = min(limit, places.CMDLINE_ROOM - 1)
    if len(text) > limit:
        raise ImageError(
            f"kernel command line has {len(text)} characters, this kernel takes {limit}:"
            f" shorten --append by {len(text) - limit}"
        )
    return text.encode("ascii") + b"\0"
