"""What figures say of goals and ratios, and how they are shown and stored."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from benchmarks.figures import Figure, from_json, markdown, present, table, to_json


def test_the_ratio_is_that_of_each_run_not_of_the_medians() -> None:
    figure = Figure("boot", "s", [1.0, 9.0, 4.0], [2.0, 6.0, 16.0])

    assert figure.ratios == [0.5, 1.5, 0.25]
    assert figure.cells[3] == "0.50 [0.25..1.50]"


def test_a_figure_without_a_goal_is_neither_met_nor_missed() -> None:
    assert Figure("boot", "s", [1.0], [2.0]).met is None


@pytest.mark.parametrize(
    ("ours", "peer", "at_most", "ratio", "met"),
    [
        ([1, 9, 2], [], 2, None, True),
        ([1, 9, 3], [], 2, None, False),
        ([5, 5, 9], [10, 10, 10], None, 0.5, True),
        ([5, 6, 9], [10, 10, 10], None, 0.5, False),
        ([5], [10], 4, 0.5, False),  # both must hold
        ([0], [0], None, 1, True),
        ([1], [0], None, 1, False),
        ([0], [], 0, None, True),
    ],
)
def test_goals_are_for_medians(
    ours: list[float], peer: list[float], at_most: float, ratio: float, met: bool
) -> None:
    assert Figure("x", "", ours, peer, at_most=at_most, ratio_at_most=ratio).met is met


def test_runs_of_the_peer_in_which_nothing_happened_have_no_ratio() -> None:
    assert Figure("exits", "", [3, 4], [0, 8]).ratios == [0.5]


@pytest.mark.parametrize("peer", [[1.0], [1.0, 2.0, 3.0]])
def test_a_peer_with_other_runs_is_refused(peer: list[float]) -> None:
    with pytest.raises(ValueError, match="boot: 2 values of ours"):
        Figure("boot", "s", [1.0, 2.0], peer)


def test_no_runs_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="boot: 0 values"):
        Figure("boot", "s", [])


def test_the_table_has_a_row_for_each_figure() -> None:
    figures = [
        Figure("boot to init", "s", [6.0, 5.2], [10.0, 12.5], peer_name="q35", ratio_at_most=0.7),
        Figure("PLUG", "us", [41.25], at_most=40),
    ]

    rows = [re.split("  +", line) for line in table(figures).splitlines()]
    assert rows[1] == [
        "boot to init",
        "5.60 s [5.20..6.00]",
        "11.2 s [10.0..12.5] (q35)",
        "0.51 [0.42..0.60]",
        "ratio 0.7",
        "yes",
    ]
    assert rows[2] == ["PLUG", "41.2 us", "-", "-", "40 us", "NO"]
    assert markdown(figures).splitlines()[3] == "| PLUG | 41.2 us | - | - | 40 us | NO |"


def test_figures_survive_json() -> None:
    figure = Figure("idle", "", [0], [0], peer_name="q35", at_most=0, detail={"exits": 3})

    stored = json.loads(json.dumps(to_json(figure)))

    assert from_json(stored) == figure


def test_a_benchmark_prints_its_table_and_stores_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--runs", "2", "--json", str(tmp_path / "out")])

    present(lambda runs=5: [Figure("runs", "", [runs])])

    assert "runs    2" in capsys.readouterr().out
    (stored,) = json.loads((tmp_path / "out").read_text())
    assert from_json(stored).ours == [2]
