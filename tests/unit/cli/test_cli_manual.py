"""The manual page: all verbs and options are in it, and docs/ has the one that is made now."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import minivmm
from minivmm.cli import main
from minivmm.cli.manual import page
from minivmm.errors import ExitStatus
from minivmm.machine_spec import DEVICE_TYPES

DOCS = Path(minivmm.__path__[0]).parent / "docs"


@pytest.fixture
def text(capsys: pytest.CaptureFixture[str]) -> str:
    assert main.run(["help", "man"]) == 0
    return capsys.readouterr().out


def test_the_page_in_docs_is_up_to_date(text: str) -> None:
    assert (DOCS / "minivmm.1").read_text() == text, "run scripts/man"


def test_it_has_all_verbs_devices_and_statuses(text: str) -> None:
    plain = text.replace("\\-", "-")

    for name in (*main.VERBS, *DEVICE_TYPES):
        assert f"\n.SS {name}\n" in plain
    for status in ExitStatus:
        assert f"\n.B {int(status)}\n" in plain
    for line in (".B -m, --memory SIZE", ".B requested-size=size", ".B --wait T"):
        assert f"\n{line}\n" in plain


def test_it_is_clean_markup(text: str) -> None:
    """Every line is a macro of ours, or text in which nothing is markup by accident."""
    macros = {"TH", "SH", "SS", "PP", "TP", "B"}
    for line in text.splitlines():
        assert line == line.strip() and line
        if line.startswith("."):
            assert line[1:].split()[0] in macros
        assert not line.startswith("'")
        assert not re.search(r"\\(?![-e&]|\(dq)", line), line
    assert page({}) != text
