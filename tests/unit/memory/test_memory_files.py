"""The files behind shared memory: nobody's content is destroyed, nothing is left behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from minivmm.errors import HostError
from minivmm.memory import libc
from minivmm.memory.files import MemoryFile, check_path, file_system
from minivmm.units import MIB


def test_a_new_file_is_private_and_goes_with_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "memory"

    file = MemoryFile(MIB, path=str(path))

    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size == MIB
    file.close()
    assert not path.exists()


def test_an_empty_file_is_used_and_left_empty(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.touch()

    file = MemoryFile(MIB, path=str(path))
    os.pwrite(file.fd, b"guest", 0)
    file.close()

    assert path.read_bytes() == b""


def test_a_file_that_holds_anything_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "thesis"
    path.write_bytes(b"years of work")

    for use in (check_path, lambda path: MemoryFile(MIB, path=path)):
        with pytest.raises(HostError, match=r"holds 13 bytes.* remove it, or name a new file"):
            use(str(path))

    assert path.read_bytes() == b"years of work"


def test_a_file_in_use_by_another_machine_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "memory")
    first = MemoryFile(MIB, path=path)

    with pytest.raises(HostError, match="holds 1048576 bytes"):
        MemoryFile(MIB, path=path)

    first.close()


def test_a_directory_gets_a_nameless_file(in_memory: Path) -> None:
    file = MemoryFile(MIB, path=str(in_memory))

    assert list(in_memory.iterdir()) == []
    assert os.fstat(file.fd).st_size == MIB
    file.close()


@pytest.mark.parametrize("path", ["/dev/null", "/proc/self/mem"])
def test_what_is_no_ordinary_file_is_refused(path: str) -> None:
    with pytest.raises(HostError, match=f"path={path}: "):
        MemoryFile(MIB, path=path)


def test_a_path_through_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(HostError, match="Not a directory"):
        check_path(str(tmp_path / "file" / "memory"))


def test_a_file_system_that_cannot_punch_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "fallocate: Operation not supported")

    monkeypatch.setattr(libc, "punch_hole", refuse)

    with pytest.raises(HostError, match=r"cannot free parts of a file.* use a path on tmpfs"):
        MemoryFile(MIB, path=str(tmp_path / "memory"))

    assert list(tmp_path.iterdir()) == []


def test_a_file_larger_than_the_file_system_allows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"cannot make a file of .*: use a smaller size="):
        MemoryFile((1 << 63) - 4096, path=str(tmp_path / "memory"))

    assert list(tmp_path.iterdir()) == []


def test_data_is_counted_in_the_range_alone(in_memory: Path) -> None:
    file = MemoryFile(8 * MIB, path=str(in_memory))
    for start in (0, 2 * MIB, 3 * MIB, 7 * MIB):
        os.pwrite(file.fd, bytes(MIB), start)

    assert file.allocated_in(0, 8 * MIB) == 4 * MIB
    assert file.allocated_in(MIB, 2 * MIB) == MIB
    assert file.allocated_in(MIB // 2, 2 * MIB) == MIB
    assert file.allocated_in(4 * MIB, 3 * MIB) == 0
    assert file.allocated_in(7 * MIB + 4096, MIB - 4096) == MIB - 4096
    file.close()


def test_room_is_limited_by_a_file_system_only(in_memory: Path) -> None:
    memfd, named = MemoryFile(MIB), MemoryFile(MIB, path=str(in_memory))

    free = os.statvfs(in_memory).f_bavail * os.statvfs(in_memory).f_frsize

    assert memfd.room() is None
    assert named.room() == pytest.approx(free, rel=0.01)
    memfd.close()
    named.close()


def test_pages_of_a_size_that_the_host_lacks_are_a_host_error() -> None:
    with pytest.raises(HostError, match=r"pages of 512G .*`minivmm doctor` lists the sizes"):
        MemoryFile(1 << 39, page_size=1 << 39)


def test_file_system_of_a_name_that_does_not_exist_yet(tmp_path: Path) -> None:
    assert file_system("/proc").kind == "proc"
    assert file_system(str(tmp_path / "new")) == file_system(str(tmp_path))
