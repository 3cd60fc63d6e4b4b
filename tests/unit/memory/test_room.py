"""Room for more memory: the host's, and that of cgroups; what is kept in reserve."""

from __future__ import annotations

from pathlib import Path

import pytest

from minivmm.memory import room
from minivmm.memory.room import RESERVE
from minivmm.units import GIB, MIB

Groups = dict[str, tuple[str, int, int]]


def a_host(directory: Path, patch: pytest.MonkeyPatch, groups: Groups) -> None:
    """4 GiB available; `groups`: path -> limit, bytes in use, of which are idle file pages."""
    own = max(groups, key=len, default="/")
    for name, text in {
        "meminfo": "MemTotal: 9 kB\nMemAvailable:   4194304 kB\nBuffers: 1 kB\n",
        "cgroup": f"4:memory:/other\n0::{own}\n",
    }.items():
        (directory / name).write_text(text)
    patch.setattr(room, "MEMINFO", directory / "meminfo")
    patch.setattr(room, "OWN_CGROUP", directory / "cgroup")
    patch.setattr(room, "CGROUPS", directory / "fs")
    for path, (limit, current, idle) in groups.items():
        group = directory / "fs" / path.strip("/")
        group.mkdir(parents=True)
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text(f"{current}\n")
        (group / "memory.stat").write_text(f"anon 1\ninactive_file {idle}\nslab 2\n")


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({}, 4 * GIB),
        ({"/a": ("max", GIB, 0)}, 4 * GIB),
        ({"/a": (str(2 * GIB), GIB, 0)}, GIB),
        ({"/a": (str(2 * GIB), GIB, 512 * MIB)}, GIB + 512 * MIB),
        ({"/a": (str(GIB), GIB - MIB, 0), "/a/b": ("max", 0, 0)}, MIB),
        ({"/a": (str(8 * GIB), 0, 0), "/a/b": (str(3 * GIB), 0, 0)}, 3 * GIB),
        ({"/a": (str(GIB), 2 * GIB, 0)}, 0),
        ({"/": (str(GIB), 0, 0)}, GIB),
    ],
)
def test_the_tightest_limit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: Groups, expected: int
) -> None:
    a_host(tmp_path, monkeypatch, groups)

    assert room.available() == max(expected - RESERVE, 0)


def test_a_group_without_a_memory_controller_has_no_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_host(tmp_path, monkeypatch, {})
    (tmp_path / "cgroup").write_text("0::/a/b\n")

    assert room.available() == 4 * GIB - RESERVE


def test_this_host_has_some() -> None:
    assert room.available() > 0
