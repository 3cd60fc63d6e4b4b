"""docs/testing-drivers.md: its Python is Python, its first test is short, its names exist.

That the first test passes, as printed, in a guest is shown by tests/lab/test_wheel_boots.py.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import minivmm
from minivmm.pytest_plugin import conditions

TEXT = (Path(__file__).parents[2] / "docs" / "testing-drivers.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_first_test_has_fewer_than_15_lines() -> None:
    assert "<!-- first test -->\n```python\n" + BLOCKS[0] in TEXT
    assert len(BLOCKS[0].splitlines()) < 15


@pytest.mark.parametrize("code", BLOCKS)
def test_code_is_python(code: str) -> None:
    body = "".join(f"    {line}\n" for line in code.splitlines())

    ast.parse(f"async def f():\n{body}")


def test_public_names_are_told_of() -> None:
    for name in re.findall(r"minivmm\.([A-Z]\w+)\(", TEXT):
        assert name in minivmm.__all__


def test_every_marker_is_told_of() -> None:
    for line in conditions._MARKERS:
        assert f"`{line.partition('(')[0]}(" in TEXT
