"""The newc archive, read back by an own reader and by cpio(1)."""

from __future__ import annotations

import shutil
import stat
import subprocess

import pytest

from minivmm.guest.initramfs import Archive

FIELDS = (
    "ino", "mode", "uid", "gid", "nlink", "mtime", "filesize", "devmajor", "devminor", "rdevmajor",
    "rdevminor", "namesize", "check",
)  # fmt: skip


def read_newc(archive: bytes) -> list[tuple[str, dict[str, int], bytes]]:
    """(name, header numbers, data) of every entry, from the format's description."""
    found: list[tuple[str, dict[str, int], bytes]] = []
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        numbers = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        header = dict(zip(FIELDS, numbers, strict=True))
        name = archive[at + 110 : at + 110 + header["namesize"]]
        assert name.endswith(b"\0")
        start = (at + 110 + header["namesize"] + 3) // 4 * 4
        data = archive[start : start + header["filesize"]]
        at = (start + header["filesize"] + 3) // 4 * 4
        if name == b"TRAILER!!!\0":
            assert not archive[at:].strip(b"\0")
            return found
        found.append((name[:-1].decode(), header, data))


def sample() -> Archive:
    archive = Archive()
    archive.add_file("/init", b"#!/bin/sh\n", 0o755)
    archive.add_link("/bin/sh", "busybox")
    archive.add_character_device("/dev/console", 5, 1)
    archive.add_file("/a/b/c", b"12345")
    archive.add_directory("/tmp", 0o1777)
    return archive


def test_every_kind_of_entry_reads_back() -> None:
    entries = {name: (header, data) for name, header, data in read_newc(sample().build())}

    assert entries["init"][0]["mode"] == stat.S_IFREG | 0o755
    assert entries["init"][1] == b"#!/bin/sh\n"
    assert entries["bin/sh"][0]["mode"] == stat.S_IFLNK | 0o777
    assert entries["bin/sh"][1] == b"busybox"
    assert entries["dev/console"][0]["mode"] == stat.S_IFCHR | 0o600
    assert (entries["dev/console"][0]["rdevmajor"], entries["dev/console"][0]["rdevminor"]) == (
        5,
        1,
    )
    assert entries["tmp"][0]["mode"] == stat.S_IFDIR | 0o1777


def test_parents_exist_and_come_first() -> None:
    names = [name for name, _, _ in read_newc(sample().build())]

    assert names.index("a") < names.index("a/b") < names.index("a/b/c")


def test_order_of_adding_does_not_show() -> None:
    other = Archive()
    other.add_directory("/tmp", 0o1777)
    other.add_character_device("/dev/console", 5, 1)
    other.add_file("/a/b/c", b"12345")
    other.add_link("/bin/sh", "busybox")
    other.add_file("/init", b"#!/bin/sh\n", 0o755)

    assert other.build() == sample().build()


def test_nothing_of_the_host_is_in_the_headers() -> None:
    headers = [header for _, header, _ in read_newc(sample().build())]

    assert all(header["mtime"] == header["uid"] == header["gid"] == 0 for header in headers)
    inodes = [header["ino"] for header in headers]
    assert len(set(inodes)) == len(inodes)


@pytest.mark.parametrize("path", ["init", "/", "/a//b", "/a/../b", "/a/", "/./a"])
def test_strange_paths_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="plain absolute path"):
        Archive().add_file(path, b"")


def test_a_path_cannot_be_added_twice() -> None:
    archive = sample()
    with pytest.raises(ValueError, match="twice"):
        archive.add_file("/init", b"#!/bin/sh\n", 0o755)


def test_a_file_cannot_be_a_parent() -> None:
    archive = sample()
    with pytest.raises(ValueError, match="not a directory"):
        archive.add_file("/init/x", b"")


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
def test_cpio_lists_the_archive() -> None:
    listing = subprocess.run(
        ["cpio", "--list", "--verbose", "--numeric-uid-gid", "--quiet"],
        input=sample().build(),
        capture_output=True,
        check=True,
        env={"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin"},
    )
    lines = listing.stdout.decode().splitlines()

    assert listing.stderr == b""
    assert any(line.startswith("crw-------") and "5,   1" in line for line in lines)
    assert any(line.endswith("bin/sh -> busybox") for line in lines)
    assert any(line.startswith("drwxrwxrwt") and line.endswith(" tmp") for line in lines)
    assert any(line.startswith("-rw-r--r--") and line.endswith("a/b/c") for line in lines)
