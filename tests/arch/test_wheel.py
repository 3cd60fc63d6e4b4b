"""The wheel holds the package minivmm, whole and alone; one built from the sdist is the same."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_SOURCES = (".*", "__pycache__", "*.egg-info", "build", "dist")
SETUPTOOLS = 77
"""The oldest that pyproject.toml accepts; where it is installed, building needs no network."""

pytestmark = pytest.mark.timeout(180)


def isolation() -> list[str]:
    try:
        installed = version("setuptools")
    except PackageNotFoundError:
        return []
    return ["--no-isolation"] if int(installed.split(".")[0]) >= SETUPTOOLS else []


def build(kind: str, tree: Path, target: Path) -> Path:
    """The one file that building `kind` (wheel, sdist) from `tree` leaves in `target`."""
    command = [sys.executable, "-m", "build", f"--{kind}", *isolation(), "--outdir", str(target)]
    result = subprocess.run([*command, str(tree)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (built,) = target.iterdir()
    return built


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources as they are now; building leaves traces, and those should not be in ours."""
    copy = tmp_path_factory.mktemp("sources") / "minivmm"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(*NOT_SOURCES))
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tree, tmp_path_factory.mktemp("wheel"))


def test_wheel_holds_every_file_of_the_package_and_no_other(tree: Path, wheel: Path) -> None:
    folders = [tree / "minivmm", tree / "minivmm/devices", tree / "minivmm/guest"]  # through links
    wanted = {
        str(path.relative_to(tree))
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    }

    found = names(wheel)

    assert {name for name in found if ".dist-info/" not in name} == wanted
    assert {name.split("/")[0] for name in found} == {
        "minivmm",
        f"{wheel.name.rsplit('-', 3)[0]}.dist-info",
    }


@pytest.mark.parametrize(
    "name",
    [
        "minivmm/py.typed",
        "minivmm/devices/virtio_mem/device.py",
        "minivmm/guest/init.sh",
        "minivmm/guest/agent.sh",
        "minivmm/lab/init.sh",
    ],
)
def test_wheel_has_what_is_read_at_run_time(wheel: Path, name: str) -> None:
    assert name in names(wheel)


def test_wheel_names_its_command_and_its_one_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = {Path(name).name: name for name in archive.namelist() if ".dist-info/" in name}
        commands = archive.read(info["entry_points.txt"]).decode()
        packages = archive.read(info["top_level.txt"]).decode()

    assert "minivmm = minivmm.cli.main:run" in commands
    assert packages.split() == ["minivmm"]


def test_sdist_builds_the_same_wheel(tree: Path, wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "sdist").mkdir()
    (tmp_path / "wheel").mkdir()
    sdist = build("sdist", tree, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()

    again = build("wheel", unpacked, tmp_path / "wheel")

    assert names(again) == names(wheel)
