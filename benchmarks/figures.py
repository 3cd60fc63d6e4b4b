"""The shape of what benchmarks find: figures beside a peer's and a goal; their tables and JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HEADINGS = ("figure", "minivmm", "beside it", "ratio", "goal", "met")


@dataclass(frozen=True)
class Figure:
    """Something that was measured, of which less is better, in runs that took turns."""

    name: str
    unit: str
    """"s", "us", "MiB", "exits": what all values are in."""
    ours: Sequence[float]
    """A value from each run; at least one."""
    peer: Sequence[float] = ()
    """What it is compared with: as many values, from the same runs, or none."""
    _: dataclasses.KW_ONLY
    peer_name: str = "QEMU"
    """Who the peer is; it may be ourselves with, say, a smaller region."""
    at_most: float | None = None
    """A goal for the median of ours, in the figure's unit."""
    ratio_at_most: float | None = None
    """A goal for the median of ours / peer."""
    detail: Mapping[str, float] = field(default_factory=dict)
    """What explains the figure and is no row of its own: exits by kind, system calls."""

    def __post_init__(self) -> None:
        if not self.ours or len(self.peer) not in (0, len(self.ours)):
            raise ValueError(
                f"{self.name}: {len(self.ours)} values of ours and {len(self.peer)} of the peer"
            )

    @property
    def ratios(self) -> list[float]:
        """Ours / the peer's, run by run; runs in which the peer's was 0 are left out."""
        return [one / other for one, other in zip(self.ours, self.peer, strict=False) if other]

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without one."""
        middle, found = statistics.median(self.ours), []
        if self.at_most is not None:
            found.append(middle <= self.at_most)
        if self.ratio_at_most is not None and self.peer:
            if ratios := self.ratios:
                found.append(statistics.median(ratios) <= self.ratio_at_most)
            else:  # the peer's are all 0
                found.append(middle == 0)
        return all(found) if found else None

    @property
    def cells(self) -> tuple[str, ...]:
        """Its row of a table, under HEADINGS."""
        beside = f"{_spread(self.peer, self.unit)} ({self.peer_name})" if self.peer else "-"
        goals = []
        if self.at_most is not None:
            goals.append(f"{self.at_most:g} {self.unit}".rstrip())
        if self.ratio_at_most is not None:
            goals.append(f"ratio {self.ratio_at_most:g}")
        met = {True: "yes", False: "NO", None: "-"}[self.met]
        ours, ratio = _spread(self.ours, self.unit), _spread(self.ratios, "") or "-"
        return (self.name, ours, beside, ratio, ", ".join(goals) or "-", met)


def _digits(values: Sequence[float]) -> int:
    """How many digits behind the point tell enough of `values`, by their median."""
    size = abs(statistics.median(values))
    if all(value == int(value) for value in values):
        return 0
    return 3 if size < 0.1 else 2 if size < 10 else 1 if size < 100 else 0


def _spread(values: Sequence[float], unit: str) -> str:
    """The median, and the least and the most if they differ; "" of none."""
    if not values:
        return ""
    digits = _digits(values)
    middle, low, high = (f"{pick(values):.{digits}f}" for pick in (statistics.median, min, max))
    text = f"{middle} {unit}".rstrip()
    return text if low == high else f"{text} [{low}..{high}]"


def table(figures: Iterable[Figure]) -> str:
    """A table for a terminal, with its headings."""
    rows = [HEADINGS, *(figure.cells for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "".join(f"{line.rstrip()}\n" for line in lines)


def markdown(figures: Iterable[Figure]) -> str:
    """The same as a table of Markdown."""
    rows = [HEADINGS, tuple("---" for _ in HEADINGS), *(figure.cells for figure in figures)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def to_json(figure: Figure) -> dict[str, Any]:
    """Plain data, for `from_json`; what has its default is left out."""
    nothing: tuple[object, ...] = (None, (), [], {})
    return {key: value for key, value in vars(figure).items() if value not in nothing}


def from_json(data: Mapping[str, Any]) -> Figure:
    """What `to_json` made plain."""
    return Figure(**data)


def present(measure: Callable[..., list[Figure]]) -> None:
    """`main` of a benchmark: measure, print the table, or store the figures with --json."""
    parser = argparse.ArgumentParser(description="Measures, and prints a table.")
    parser.add_argument("--runs", type=int, help="how often each is measured")
    parser.add_argument("--json", type=Path, metavar="FILE", help="store the figures here as well")
    words = parser.parse_args()
    figures = measure() if words.runs is None else measure(words.runs)
    print(table(figures), end="", flush=True)
    if words.json is not None:
        words.json.write_text(json.dumps([to_json(figure) for figure in figures], indent=1))
