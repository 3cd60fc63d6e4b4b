"""Real kernels meet every misbehaviour that docs/misbehaviour.md has, and end as it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from misbehaviour import CASES, find, rows

FOUND = Path(__file__).parents[2] / "docs" / "misbehaviour.json"


@pytest.mark.timeout(900)
def test_linux_makes_of_each_misbehaviour_what_is_documented(kernel: str, tmp_path: Path) -> None:
    came = find(kernel, tmp_path)
    found = rows(kernel, came)
    print(json.dumps(found, indent=1))

    documented = json.loads(FOUND.read_text())[kernel]
    assert ends(found) == ends(documented)
    assert [case.name for case in CASES if came[case.name].idle] == []


def ends(table: dict[str, Any]) -> dict[str, tuple[int, str]]:
    """How much was plugged by each case, and what cured it; not of those that are a race."""
    rows_ = {case.name: table[case.name] for case in CASES if not case.races}
    return {name: (row["plugged"], row["cure"]) for name, row in rows_.items()}
