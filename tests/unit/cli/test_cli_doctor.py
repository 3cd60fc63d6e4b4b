"""`doctor`: what it finds decides its status; --kvm asks for /dev/kvm alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minivmm.accel import Accel
from minivmm.cli import doctor, main
from minivmm.memory import hugepages
from minivmm.vfio.survey import Survey

UNUSABLE = Accel(False, "no such thing", "buy one")


@pytest.mark.parametrize(("usable", "status"), [(True, 0), (False, 1)])
def test_kvm_alone_decides_with_its_option(
    usable: bool, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "probe", lambda: Accel(usable, "because"))

    assert main.run(["doctor", "--kvm"]) == status


def test_unusable_kvm_is_no_failure_where_the_lab_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "probe", lambda: UNUSABLE)

    main.run(["doctor", "--json"])

    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["kvm"] == {
        "name": "kvm",
        "ok": False,
        "detail": "no such thing",
        "cure": "buy one",
        "needed": False,
    }
    assert checks["qemu"]["needed"] is True
    assert checks["virtiofsd"]["needed"] is True


def test_missing_program_is_named_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "probe", lambda: UNUSABLE)
    monkeypatch.setattr("shutil.which", lambda program: None)

    status = main.run(["doctor"])

    output = capsys.readouterr().out
    assert status == 1
    assert "MISSING  qemu: qemu-system-x86_64 not found" in output
    assert "`apt-get install qemu-system-x86`" in output


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up /sys/kernel/mm, empty."""
    monkeypatch.setattr(doctor, "probe", lambda: UNUSABLE)
    monkeypatch.setattr(hugepages, "MM", tmp_path)
    return tmp_path


def findings(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Lines of the report by the name of the check."""
    main.run(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    return {line[9:].split(":")[0]: line for line in lines}


def test_host_without_any_huge_pages(memory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = findings(capsys)

    for name in ("thp", "thp shared", "hugetlb"):
        assert found[name].startswith(f"no       {name}: not in this host's kernel")


def test_transparent_huge_pages_and_their_switch(
    memory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = memory / "transparent_hugepage"
    directory.mkdir()
    (directory / "hpage_pmd_size").write_text("2097152\n")
    (directory / "enabled").write_text("always [madvise] never\n")
    (directory / "shmem_enabled").write_text("always advise [never]\n")

    found = findings(capsys)

    assert found["thp"] == "ok       thp: pages of 2M: madvise"
    assert found["thp shared"] == (
        f"no       thp shared: pages of 2M: never; cure: `echo advise > {directory}/shmem_enabled`"
    )


def test_each_pool_is_named_with_its_pages_and_cure(
    memory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kib, free in ((2048, 3), (1048576, 0)):
        pool = memory / f"hugepages/hugepages-{kib}kB"
        pool.mkdir(parents=True)
        for name in ("nr", "free", "resv", "surplus", "nr_overcommit"):
            (pool / f"{name}_hugepages").write_text("0\n")
        (pool / "nr_hugepages").write_text("4\n")
        (pool / "free_hugepages").write_text(f"{free}\n")

    found = findings(capsys)

    assert found["hugetlb 2M"] == "ok       hugetlb 2M: 3 of 4 pages free, 6M to be had"
    assert found["hugetlb 1G"].startswith("no       hugetlb 1G: 0 of 4 pages free, 0 to be had")
    assert "boot with hugepagesz=1G hugepages=N" in found["hugetlb 1G"]


def test_few_mappings_are_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "probe", lambda: UNUSABLE)
    setting = tmp_path / "max_map_count"
    monkeypatch.setattr(doctor, "MAPPINGS", setting)

    setting.write_text("65530\n")
    assert findings(capsys)["mappings"] == "ok       mappings: 65530"

    setting.write_text("1000\n")
    assert findings(capsys)["mappings"].startswith("no       mappings: 1000; cure: write another")


def test_passthrough_is_a_finding_with_what_would_make_it_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "probe", lambda: UNUSABLE)
    monkeypatch.setattr(doctor, "survey", lambda: Survey(3, ("0000:01:00.0",), ("group",)))
    main.run(["doctor"])
    found = "ok       passthrough: 3 IOMMU groups; VFIO holds 0000:01:00.0; by group"
    assert findings(capsys)["passthrough"] == found

    monkeypatch.setattr(doctor, "survey", lambda: Survey(3, (), ("group",)))
    main.run(["doctor"])
    assert findings(capsys)["passthrough"].endswith(
        "VFIO holds no device; by group; cure: "
        "`modprobe vfio-pci`, and a device bound to it (docs/vfio.md)"
    )
