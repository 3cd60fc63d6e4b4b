"""The wheel in a fresh environment boots guests in the lab, far from the sources."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest

from minivmm.guest.kernels import DEFAULT_VERSION, fetched, is_version_of
from minivmm.lab.lab import MARK

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(300),
    pytest.mark.skipif(MARK in os.environ, reason="this is the lab"),
]


def run(*words: str | Path, cwd: Path) -> str:
    """Run a command that must succeed; what it prints."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(
        words, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def isolation() -> list[str]:
    """Build with the setuptools that is here, if the project's own requirement allows it."""
    installed = int(metadata.version("setuptools").split(".")[0])
    return ["--no-isolation"] if installed >= 77 else []


@pytest.fixture(scope="module")
def release() -> str:
    known = [k.release for k in fetched() if is_version_of(DEFAULT_VERSION, k.release)]
    if not known:
        pytest.skip("no kernel to boot: run `minivmm kernel fetch`")
    return known[-1]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with nothing but the wheel, what it depends on, and pytest."""
    path = tmp_path_factory.mktemp("wheel")
    for source in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / source, path / source)
    shutil.copytree(ROOT / "minivmm", path / "minivmm")  # not built in place: that leaves traces
    run(sys.executable, "-m", "build", "--wheel", "--outdir", path, *isolation(), cwd=path)
    (wheel,) = path.glob("minivmm-*.whl")
    venv.create(path / "venv", with_pip=True)
    run(path / "venv/bin/pip", "install", "-q", wheel, "pytest>=9", cwd=path)
    return path / "venv"


def test_installed_wheel_boots_a_guest(environment: Path, release: str, tmp_path: Path) -> None:
    (tmp_path / "minivmm").mkdir()  # a trap: neither side may take what the directory holds
    (tmp_path / "minivmm/__init__.py").write_text("raise ImportError('not the wheel')\n")
    words = ["boot", "--accel=lab", f"-k{release}", "--", "uname", "-r"]

    output = run(environment / "bin/minivmm", *words, cwd=tmp_path)

    assert output == f"{release}\n"


def test_first_test_of_the_document_passes_as_printed(
    environment: Path, release: str, tmp_path: Path
) -> None:
    text = (ROOT / "docs/testing-drivers.md").read_text()
    found = re.search(r"<!-- first test -->\n```python\n(.*?)```", text, re.DOTALL)
    assert found
    (tmp_path / "pytest.ini").write_text("[pytest]\n")  # or one of a directory above counts
    (tmp_path / "test_memory.py").write_text(found[1])
    words = ["--minivmm-lab", f"--minivmm-kernel={release}", "-v", "test_memory.py"]

    output = run(environment / "bin/pytest", *words, cwd=tmp_path)

    assert f"test_memory_comes_and_goes[{release}] PASSED" in output
    assert "1 passed" in output
