"""docs/performance.md: its tables are of the run that is stored, its text of what is measured."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks are no part of the package

from benchmarks import all as every
from benchmarks import page
from benchmarks.stored import HOST, LAB, read

TEXT = page.PAGE.read_text()
RUN = read(page.FOUND)


def test_the_tables_are_what_the_generator_writes() -> None:
    assert page.page(TEXT, RUN) == TEXT, "run: python -m benchmarks.page"


def test_the_stored_run_is_whole() -> None:
    parts = [(HOST, name) for name in every.ON_HOST] + [(LAB, name) for name in every.WITH_GUESTS]

    assert [(part.place, part.module) for part in RUN.parts] == parts
    assert RUN.failed == []
    assert set(RUN.hosts) == {HOST, LAB}


@pytest.mark.parametrize("name", sorted({*every.ON_HOST, *every.WITH_GUESTS}))
def test_every_benchmark_is_described(name: str) -> None:
    method = TEXT[: TEXT.index("## Figures")]

    assert re.search(rf"^\| `{name}` \|", method, re.MULTILINE)


def test_each_missed_goal_is_explained() -> None:
    explained = " ".join(TEXT[TEXT.index("## What bounds each figure") :].split())

    for figure in RUN.missed:
        assert f"**{figure.name}**" in explained, "where does the time go?"
