"""`doctor`: what it finds decides its status; --kvm asks for /dev/kvm alone."""

from __future__ import annotations

import json

import pytest

from minivmm.accel import Accel
from minivmm.cli import doctor, main

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
