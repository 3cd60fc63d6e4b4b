"""Files that people name as kernel or initrd and that are none: told at once, never read on."""

import os
from pathlib import Path

import pytest

from minivmm.errors import ImageError
from minivmm.guest.files import MOST, read_image


def test_content_comes_back(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"kernel")

    assert read_image(tmp_path / "file", "kernel") == b"kernel"


def test_things_that_never_end_are_refused_unread(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ImageError, match=r"initrd .* is a device or pipe"):
            read_image(path, "initrd")


def test_a_directory_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is a directory"):
        read_image(tmp_path, "kernel")


def test_a_disk_image_is_not_read_into_memory(tmp_path: Path) -> None:
    with (tmp_path / "disk").open("wb") as file:
        file.truncate(MOST + 1)

    with pytest.raises(ImageError, match="more than a guest can load"):
        read_image(tmp_path / "disk", "kernel")


@pytest.mark.parametrize("name", ["missing", "zero\0byte"])
def test_what_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match="cannot read kernel"):
        read_image(tmp_path / name, "kernel")
