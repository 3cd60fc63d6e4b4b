"""minivmm_guest_restore: each kind of guest is booted once, and restored for every test."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import fake_bench  # noqa: F401 - or every run of pytest would import it anew
import pytest

pytest_plugins = ["pytester"]

CONFTEST = """
import pytest
from fake_bench import fake_kvm

@pytest.fixture(autouse=True, scope="session")
def no_kvm():
    with fake_kvm() as systems:
        yield systems
"""

TESTS = """
import minivmm
import pytest

@pytest.mark.parametrize("number", range(3))
def test_one(guest, number):
    assert guest.run("echo hi", check=True).stdout == "hi\\n"
    assert guest.engine._plan.restore is not None

@pytest.mark.minivmm_machine(memory="64M")
def test_another(guest):
    assert guest.spec.memory == 64 << 20
    assert guest.mem["vmem0"].size == 4 << 30

def test_two(guest_factory):
    first, second = guest_factory(), guest_factory(memory="64M")
    assert first.spec.memory == 512 << 20
    assert second.spec.memory == 64 << 20

def test_booted(no_kvm):
    assert len(no_kvm) == 2 + 3 + 1 + 2
"""


def test_each_kind_of_guest_is_booted_once(
    pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIVMM_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    kernel = tmp_path / "cache/minivmm/kernels/6.12.9-fake"
    (kernel / "modules").mkdir(parents=True)
    (kernel / "vmlinuz").write_bytes(b"")
    pytester.makeconftest(CONFTEST)
    pytester.makeini("[pytest]\nminivmm_guest_restore = true\n")
    pytester.makepyfile(TESTS)
    plain = [
        word for name in ("cacheprovider", "hypothesispytest") for word in ("-p", f"no:{name}")
    ]
    pytester.runpytest_inprocess(*plain).assert_outcomes(passed=6)
