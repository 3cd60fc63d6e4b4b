"""Files that cannot be a disk: each a line before the guest starts, with a remedy."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from minivmm.devices.virtio_blk import disk as disk_module
from minivmm.devices.virtio_blk.disk import Disk
from minivmm.devices.virtio_blk.spec import VirtioBlkSpec
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.devices.virtio_rng.spec import VirtioRngSpec
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


def test_a_disk_cannot_be_two_disks_of_one_machine(file: Path) -> None:
    first = VirtioBlkSpec(file=str(file)).open()

    assert "in use by another disk, of this machine or another one" in refusal(file)
    first.close()


def test_a_block_device_that_the_host_has_mounted(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel says EBUSY to O_EXCL then, for a block device only (open(2))."""
    mode = stat.S_IFBLK | 0o660
    monkeypatch.setattr(disk_module.os, "stat", lambda path: SimpleNamespace(st_mode=mode))
    monkeypatch.setattr(disk_module.os, "open", _open_what_is_mounted)

    assert "is in use by this host: unmount it, or use readonly=on" in refusal(file)
    VirtioBlkSpec(file=str(file), readonly=True).check_files()


_open = os.open


def _open_what_is_mounted(path: str, flags: int) -> int:
    if flags & os.O_EXCL:
        raise OSError(errno.EBUSY, "Device or resource busy")
    return _open(path, flags)


@pytest.mark.parametrize(
    ("begin", "kind"),
    [
        (b"QFI\xfb\0\0\0\3", "qcow2"),
        (b"KDMV\1\0", "vmdk"),
        (b"vhdxfile", "vhdx"),
        (b"<<< Oracle VM VirtualBox Disk Image >>>", "vdi"),
    ],
)
def test_an_image_that_is_not_raw_unless_the_user_says_so(
    file: Path, begin: bytes, kind: str
) -> None:
    file.write_bytes(begin.ljust(4096, b"\0"))

    assert f"is a {kind} image: `qemu-img convert -O raw {file} {file}.raw`" in refusal(file)
    VirtioBlkSpec(file=str(file), format="raw").check_files()


def test_a_queue_that_holds_no_request() -> None:
    with pytest.raises(UsageError, match=r"disk0: queue-size 2 holds no request, .* 3 descriptors"):
        VirtioBlkSpec(file="x", queue_size=2, indirect_desc=False)
    with pytest.raises(UsageError, match=r"vmem0: queue-size 1 holds no request, .* 2 descriptors"):
        VirtioMemSpec(size=1 << 30, queue_size=1, indirect_desc=False)
    VirtioBlkSpec(file="x", queue_size=1)
    VirtioRngSpec(queue_size=1, indirect_desc=False)


def test_a_serial_number_has_twenty_characters_at_most() -> None:
    with pytest.raises(UsageError, match=r"disk0: serial .* at most 20"):
        VirtioBlkSpec(file="x", serial="s" * 21)


def test_the_path_is_made_independent_of_the_working_directory() -> None:
    full = VirtioBlkSpec(file="disk.img").with_full_paths()

    assert full.file == str(Path.cwd() / "disk.img")
