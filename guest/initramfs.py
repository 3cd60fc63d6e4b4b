"""Writes a newc cpio archive, the format Linux unpacks as its first root file system.

The same entries always give the same bytes: paths are sorted, times are zero, inode numbers count
up. What goes into a guest is decided in build.py.

The format is in the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass

MAGIC = b"070701"
HEADER_SIZE = 110
"""Bytes of an entry's header: the magic and 13 numbers of eight hexadecimal digits."""
TRAILER = "TRAILER!!!"
"""Name of the entry that ends an archive."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One path: `mode` with its file type bits, content or link target, device numbers."""

    mode: int
    data: bytes = b""
    major: int = 0
    minor: int = 0


class Archive:
    """Collects entries, then builds the archive. Paths are absolute; parents appear by themselves.

    A path that is added twice raises ValueError, except for a directory with the same mode.
    """

    def __init__(self) -> None:
        self._entries: dict[tuple[str, ...], Entry] = {}  # by the parts of the path

    def add_directory(self, path: str, mode: int = 0o755) -> None:
        """A directory with permission bits `mode`."""
        self._add(path, Entry(stat.S_IFDIR | mode))

    def add_file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """A regular file with permission bits `mode`."""
        self._add(path, Entry(stat.S_IFREG | mode, data))

    def add_link(self, path: str, target: str) -> None:
        """A symbolic link; `target` is stored as it is."""
        self._add(path, Entry(stat.S_IFLNK | 0o777, target.encode()))

    def add_character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A character device node. Needs no privilege: the guest's kernel makes the node."""
        self._add(path, Entry(stat.S_IFCHR | mode, major=major, minor=minor))

    def build(self) -> bytes:
        """The archive, padded to 512 bytes as cpio(1) does."""
        # A parent's parts are a prefix of its children's, so sorting puts it before them.
        encoded = [
            _encode("/".join(parts), self._entries[parts], inode)
            for inode, parts in enumerate(sorted(self._entries), start=1)
        ]
        archive = b"".join([*encoded, _encode(TRAILER, Entry(0), 0)])
        return archive + bytes(-len(archive) % 512)

    def _add(self, path: str, entry: Entry) -> None:
        root, *rest = path.split("/")
        if root or not all(rest) or "." in rest or ".." in rest:
            raise ValueError(f"{path!r} is not a plain absolute path below /")
        parts = tuple(rest)
        for end in range(1, len(parts)):
            parent = self._entries.setdefault(parts[:end], Entry(stat.S_IFDIR | 0o755))
            if not stat.S_ISDIR(parent.mode):
                raise ValueError(f"{path}: a parent is not a directory")
        existing = self._entries.setdefault(parts, entry)
        if existing is not entry and not (
            stat.S_ISDIR(existing.mode) and existing.mode == entry.mode
        ):
            raise ValueError(f"{path} is added twice")


def _encode(name: str, entry: Entry, inode: int) -> bytes:
    """Header, name and data of one entry, each padded to four bytes."""
    raw_name = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    numbers = (
        inode,
        entry.mode,
        0,  # user
        0,  # group
        links,
        0,  # modification time
        len(entry.data),
        0,  # major number of the device that the file was read from
        0,  # its minor number
        entry.major,
        entry.minor,
        len(raw_name),
        0,  # checksum, only used with the magic 070702
    )
    header = MAGIC + b"%08X" * 13 % numbers
    return _padded(header + raw_name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
