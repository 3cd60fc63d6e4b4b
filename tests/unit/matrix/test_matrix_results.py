"""Results: stored, read again, shown, compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from minivmm.errors import HostError, UsageError
from minivmm.matrix.compare import compare, lines
from minivmm.matrix.results import Cell, Column, Leaks, Outcome, Results, read, write
from minivmm.matrix.tables import markdown, rows

OURS, PEER = Column("6.12", "minivmm"), Column("6.12", "qemu", "packed=on")
MADE = {
    "when": "2026-01-01T00:00:00Z",
    "minivmm": "0.1.0",
    "qemu": "7.2",
    "kernels": {"6.12": "6.12.1-x"},
    "suite": "quick",
    "amount": 1 << 30,
    "memory": 512 << 20,
    "region": 2 << 30,
    "repeat": 1,
    "host": {"kernel": "6.1", "cpu": "x", "cpus": 2, "lab": True},
}


def cell(name: str, outcome: Outcome = Outcome.PASSED, **figures: list[float]) -> Cell:
    told = {key.replace("_", "-"): values for key, values in figures.items()}
    return Cell(OURS, name, outcome, figures=told, leaks=Leaks(0, 0, 0, 0))


@pytest.fixture
def results() -> Results:
    idle = cell("idle", grow_seconds_per_gib=[0.5], shrink_seconds_per_gib=[2.0, 4.0, 3.0])
    failed = Cell(PEER, "idle", Outcome.FAILED, "no | memory", 3.25, console="Oops")
    boot = cell("boot", boot_with_seconds=[3.0], boot_without_seconds=[2.0])
    return Results(dict(MADE), [idle, failed, boot])


def test_what_is_stored_is_read_again(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write(path, results)
    again = read(path)

    assert again.made == results.made
    assert [(one.column, one.scenario, one.figures) for one in again.cells] == [
        (one.column, one.scenario, one.figures) for one in results.cells
    ]
    assert (again.cells[1].reason, again.cells[1].console) == ("no | memory", "Oops")
    assert [one.name for one in tmp_path.iterdir()] == ["x.json"]
    assert json.loads(path.read_text())["schema"] == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a result of `minivmm matrix`"),
        ('{"kind": "minivmm-matrix", "schema": 9}', "has schema 9, this minivmm reads 1"),
        ('{"kind": "minivmm-matrix", "schema": 1}', "is damaged"),
    ],
)
def test_what_is_no_result_is_refused(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=why):
        read(path)


def test_files_that_cannot_be_are_named(results: Results, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*missing"):
        read(tmp_path / "missing")
    with pytest.raises(HostError, match="cannot write"):
        write(tmp_path / "no" / "x.json", results)


def test_the_table_has_a_row_for_each_cell(results: Results) -> None:
    _, first, second, third = rows(results)

    assert first[4:] == (
        "passed",
        "grow 0.50 s/GiB, shrink 3.00 s/GiB (2.00 to 4.00)",
        "none",
    )
    assert second[1:6] == ("qemu", "packed=on", "idle", "failed", "no | memory")
    assert third[5] == "boot with device 3.0 s, without 2.0 s"


def test_markdown_has_kernels_side_by_side(results: Results) -> None:
    text = markdown(results)

    assert "| idle | passed | failed |" in text
    assert "* 6.12 qemu packed=on idle, failed: no | memory" in text
    assert "| idle | 3.00 (2.00 to 4.00) |  |" in text
    assert "| 6.12 minivmm | 3.0 s | 2.0 s | +1.0 |  |  |  |" in text
    assert "256M" not in text
    widths = {
        line.count("|") - line.count("no | memory")
        for line in text.splitlines()
        if line.startswith("| idle")
    }
    assert widths == {4}


def test_two_runs_are_compared_cell_by_cell(results: Results) -> None:
    slower = cell("idle", grow_seconds_per_gib=[1.0], shrink_seconds_per_gib=[3.0])
    mended = replace(results.cells[1], outcome=Outcome.PASSED)
    broken = replace(results.cells[2], outcome=Outcome.FAILED, reason="does not boot")
    new = Results(dict(MADE), [slower, mended, broken, cell("load")])

    found = compare(results, new)

    assert [one.scenario for one in found.broken] == ["boot"]
    assert [one.column for one in found.mended] == [PEER]
    assert [one.scenario for one in found.added] == ["load"]
    assert [(one.figure, one.ratio) for one in found.changes] == [
        ("grow-seconds-per-gib", 2.0),
        ("shrink-seconds-per-gib", 1.0),
    ]
    assert [one.figure for one in found.worse_than(1.5)] == ["grow-seconds-per-gib"]
    told = lines(found, 1.5)
    assert told[0] == "now fails: 6.12 minivmm boot: does not boot"
    assert told[3].endswith("grow 0.50 s/GiB -> 1.00 s/GiB (more than the tolerance)")
    assert [one.scenario for one in compare(new, results).gone] == ["load"]


def test_less_that_could_be_unplugged_is_worse() -> None:
    old = Results(dict(MADE), [cell("f", unplugged_fraction=[1.0], movable_fraction=[1.0])])
    new = Results(dict(MADE), [cell("f", unplugged_fraction=[0.5], movable_fraction=[0.1])])

    assert [(one.figure, one.ratio) for one in compare(old, new).changes] == [
        ("unplugged-fraction", 2.0)
    ]
