"""Files that cannot be a disk: each a line before the guest starts, with a remedy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from minivmm.devices.virtio_blk.disk import Disk
from minivmm.devices.virtio_blk.spec import VirtioBlkSpec
from minivmm.errors import HostError, UsageError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


def refusal(path: Path | str, *, readonly: bool = False) -> str:
    with pytest.raises(HostError) as caught:
        VirtioBlkSpec(file=str(path), readonly=readonly).check_files()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no.img").startswith(
        f"disk0: disk {tmp_path}/no.img does not exist: `truncate -s 1G"
    )


def test_a_write_protected_file_even_for_the_superuser(file: Path) -> None:
    file.chmod(0o444)

    assert "cannot be written: use readonly=on" in refusal(file)
    VirtioBlkSpec(file=str(file), readonly=True).check_files()


def test_an_empty_file(file: Path) -> None:
    os.truncate(file, 0)

    assert "is empty: give it a size" in refusal(file)


@pytest.mark.parametrize(("size", "near"), [(100, "512"), (1000, "512, 1024")])
def test_a_file_that_is_not_whole_sectors(file: Path, size: int, near: str) -> None:
    os.truncate(file, size)

    message = refusal(file)

    assert f"has {size} bytes, which is not a multiple of 512 (nearest: {near})" in message


def test_a_directory_and_a_device_of_characters(tmp_path: Path) -> None:
    assert "name a regular file or a block device" in refusal(tmp_path)
    assert "name a regular file or a block device" in refusal("/dev/null")


def test_a_disk_has_one_writer_or_many_readers(file: Path) -> None:
    writer = Disk(str(file), readonly=False, name="disk0")
    assert "in use" in refusal(file)
    assert "in use" in refusal(file, readonly=True)
    writer.close()

    reader = Disk(str(file), readonly=True, name="disk0")
    VirtioBlkSpec(file=str(file), readonly=True).check_files()
    assert "in use" in refusal(file)
    reader.close()
    VirtioBlkSpec(file=str(file)).check_files()


def test_a_serial_number_has_twenty_characters_at_most() -> None:
    with pytest.raises(UsageError, match=r"disk0: serial .* at most 20"):
        VirtioBlkSpec(file="x", serial="s" * 21)


def test_the_path_is_made_independent_of_the_working_directory() -> None:
    full = VirtioBlkSpec(file="disk.img").with_full_paths()

    assert full.file == str(Path.cwd() / "disk.img")
