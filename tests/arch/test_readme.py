"""README's map of the code names things that exist."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = re.findall(r"^\| [^|]+ \| (`.+`) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
NAMES = [name for row in ROWS for name in re.findall(r"`([^`]+)`", row)]


@pytest.mark.parametrize("name", NAMES)
def test_named_place_exists(name: str) -> None:
    if "/" in name:
        assert (ROOT / name).is_file()
        return
    module, _, path = name.partition(":")
    found: object = importlib.import_module(module)
    for part in path.split(".") if path else []:
        found = getattr(found, part)
    assert found is not None


def test_the_map_was_found() -> None:
    assert len(NAMES) > 15


def test_readme_opens_with_the_two_commands() -> None:
    opening = (ROOT / "README.md").read_text().split("## ")[0]

    assert "scripts/demo" in opening
    assert "scripts/test" in opening
