"""The floors of pyproject.toml hold, and the two linked folders cannot be imported twice."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_every_import_respects_the_floors() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]

    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("folder", ["devices", "guest"])
def test_linked_folder_refuses_its_short_name(folder: str) -> None:
    command = [sys.executable, "-c", f"import {folder}"]

    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert result.returncode != 0
    assert f"import minivmm.{folder}" in result.stderr


def test_no_file_is_longer_than_the_limit() -> None:
    folders = [ROOT / "minivmm", ROOT / "devices", ROOT / "guest"]
    files = {path.resolve() for folder in folders for path in folder.rglob("*.py")}

    long = {str(path): lines for path in files if (lines := path.read_text().count("\n")) > 350}

    assert files
    assert not long
