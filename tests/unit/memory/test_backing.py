"""Kinds of host memory: what goes together, and what a host without it is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from minivmm.errors import HostError, UsageError
from minivmm.memory import files, hugepages
from minivmm.memory.backing import Backing
from minivmm.units import GIB, MIB


class Host:
    """A made-up /sys/kernel/mm and mount table."""

    def __init__(self, directory: Path) -> None:
        self.mm = directory / "mm"
        self.mm.mkdir()
        self.mounts = directory / "mountinfo"

    def pool(self, page_size: int, **counts: int) -> None:
        path = self.mm / f"hugepages/hugepages-{page_size // 1024}kB"
        path.mkdir(parents=True)
        for name in ("nr", "free", "resv", "surplus", "nr_overcommit"):
            (path / f"{name}_hugepages").write_text(f"{counts.get(name, 0)}\n")

    def thp(self, **settings: str) -> None:
        """`own_` before a name: the setting of the 2 MiB size alone."""
        for name, text in settings.items():
            path = self.mm / "transparent_hugepage"
            if name.startswith("own_"):
                path /= "hugepages-2048kB"
            path.mkdir(parents=True, exist_ok=True)
            (path / name.removeprefix("own_")).write_text(text)
        (self.mm / "transparent_hugepage/hpage_pmd_size").write_text("2097152\n")

    def mount(self, path: Path, kind: str, options: str) -> None:
        device = path.stat().st_dev
        number = f"{device >> 8}:{device & 0xFF}"
        self.mounts.write_text(
            f"22 27 0:9999 / /proc rw - proc proc rw\n25 24 {number} / / rw shared:1 - {kind} x"
            f" {options}\n"
        )


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host(tmp_path)
    monkeypatch.setattr(hugepages, "MM", host.mm)
    monkeypatch.setattr(files, "MOUNTS", host.mounts)
    return host


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "swap"}, "backing=swap is unknown: one of anon, memfd, file, hugetlb"),
        ({"thp": "yes"}, "thp=yes is unknown: one of on, off, madvise-default"),
        ({"kind": "file"}, "backing=file needs path="),
        ({"path": "/x"}, "path=/x is for backing=file, not anon: leave it out"),
        ({"kind": "hugetlb", "path": "/x", "page_size": 2 * MIB}, "path=/x is for backing=file"),
        ({"page_size": 2 * MIB}, "page-size=2M is for backing=hugetlb, not anon"),
        ({"kind": "hugetlb"}, "page-size=4096 is no size of huge pages.*2M or 1G"),
        ({"kind": "hugetlb", "page_size": 3 * MIB}, "page-size=3145728 is no size of huge pages"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Backing(**options)  # type: ignore[arg-type]

    assert "\n" not in str(caught.value)


def test_huge_pages_that_the_host_lacks_name_those_it_has(host: Host) -> None:
    host.pool(2 * MIB)
    host.pool(64 * 1024)

    with pytest.raises(HostError, match=r"page-size=1G: .* use one of 64K, 2M, or") as caught:
        Backing(kind="hugetlb", page_size=GIB).check_host(16 * GIB)

    assert "hugepagesz=1G hugepages=16" in str(caught.value)


def test_a_kernel_without_hugetlb_is_told_apart(host: Host) -> None:
    with pytest.raises(HostError, match=r"backing=hugetlb: .*no huge pages"):
        Backing(kind="hugetlb", page_size=2 * MIB).check_host(GIB)


def test_an_empty_pool_is_no_error(host: Host) -> None:
    host.pool(2 * MIB)

    Backing(kind="hugetlb", page_size=2 * MIB).check_host(GIB)


@pytest.mark.parametrize("kind", ["anon", "memfd"])
def test_a_kernel_without_transparent_huge_pages_refuses_that_option(host: Host, kind: str) -> None:
    with pytest.raises(HostError, match=f"thp=on: .* for backing={kind}: use thp=off"):
        Backing(kind=kind).check_host(GIB)

    for thp in ("off", "madvise-default"):
        Backing(kind=kind, thp=thp).check_host(GIB)


@pytest.mark.parametrize(
    ("settings", "switch"),
    [
        ({"enabled": "always [madvise] never"}, None),
        ({"enabled": "[always] madvise never"}, None),
        ({"enabled": "always madvise [never]"}, "transparent_hugepage/enabled"),
        ({"enabled": "always madvise [never]", "own_enabled": "[always] inherit"}, None),
        ({"enabled": "always [madvise] never", "own_enabled": "always [inherit] madvise"}, None),
        (
            {"enabled": "[always] never", "own_enabled": "always inherit madvise [never]"},
            "hugepages-2048kB/enabled",
        ),
    ],
)
def test_setting_for_anonymous_memory(
    host: Host, settings: dict[str, str], switch: str | None
) -> None:
    host.thp(**settings)

    if switch is None:
        Backing().check_host(GIB)
    else:
        with pytest.raises(HostError, match=f"use thp=off, or `echo madvise > .*{switch}`"):
            Backing().check_host(GIB)


@pytest.mark.parametrize(
    ("setting", "own", "good"),
    [
        ("[always] never", "[inherit]", True),
        ("[advise] never", "[inherit]", True),
        ("[within_size] never", "[inherit]", True),
        ("advise [never]", "[inherit]", False),
        ("advise [never]", "[advise] never", True),
        ("[deny] force", "[always]", False),
        ("deny [force]", "[never]", True),
    ],
)
def test_setting_for_shared_memory(host: Host, setting: str, own: str, good: bool) -> None:
    """`enabled` does not matter to it; "deny" and "force" overrule the size's own setting."""
    host.thp(enabled="always madvise [never]", shmem_enabled=setting, own_shmem_enabled=own)
    backing = Backing(kind="memfd")

    if good:
        backing.check_host(GIB)
    else:
        general = "transparent_hugepage/shmem_enabled"
        with pytest.raises(HostError, match=f"use thp=off, or `echo advise > .*{general}`"):
            backing.check_host(GIB)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("tmpfs", "rw,huge=advise,size=1g", None),
        ("tmpfs", "rw,huge=always", None),
        ("tmpfs", "rw,size=1g", "mounted without huge pages: use thp=off, or mount .* huge=advise"),
        ("tmpfs", "rw,huge=never", "mounted without huge pages"),
        ("ext4", "rw", "no transparent huge pages on ext4, where path="),
    ],
)
def test_files_have_huge_pages_where_their_tmpfs_has(
    host: Host, tmp_path: Path, kind: str, options: str, message: str | None
) -> None:
    host.thp(enabled="[always]", shmem_enabled="[never] advise")
    host.mount(tmp_path, kind, options)
    backing = Backing(kind="file", path=str(tmp_path / "memory"))

    if message is None:
        backing.check_host(GIB)
    else:
        with pytest.raises(HostError, match=f"thp=on: .*{message}"):
            backing.check_host(GIB)


def test_a_path_that_cannot_be_used_is_told_before_anything_is_made(tmp_path: Path) -> None:
    path = tmp_path / "none" / "memory"

    with pytest.raises(HostError, match=f"path={path}: there is no directory {path.parent}"):
        Backing(kind="file", path=str(path), thp="off").check_host(GIB)


def test_checking_a_path_makes_nothing_there(tmp_path: Path) -> None:
    Backing(kind="file", path=str(tmp_path / "memory"), thp="off").check_host(GIB)

    assert list(tmp_path.iterdir()) == []


def test_hugetlbfs_is_not_for_files(host: Host, tmp_path: Path) -> None:
    host.mount(tmp_path, "hugetlbfs", "rw,pagesize=2M")

    with pytest.raises(HostError, match="use backing=hugetlb"):
        Backing(kind="file", path=str(tmp_path), thp="off").check_host(GIB)


def test_pool_counts_what_others_have_reserved_and_what_can_be_added(host: Host) -> None:
    host.pool(2 * MIB, nr=10, free=8, resv=3, surplus=1, nr_overcommit=4)
    host.pool(GIB, nr=1, free=0, resv=0)

    assert hugepages.pool(2 * MIB).available == (8 - 3 + 4 - 1) * 2 * MIB
    assert hugepages.pool(GIB).available == 0
    assert list(hugepages.pools()) == [2 * MIB, GIB]


def test_size_of_transparent_huge_pages(host: Host) -> None:
    assert hugepages.thp_size() is None
    host.thp(enabled="[always]")

    assert hugepages.thp_size() == 2 * MIB
