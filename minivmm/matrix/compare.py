"""Two runs of the matrix side by side: what failed that had passed, and what takes longer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from minivmm.matrix.figures import ratio, shown, title
from minivmm.matrix.results import Cell, Column, Outcome, Results


@dataclass(frozen=True)
class Change:
    """A figure of a cell in both runs; `ratio` is above 1 if it is for the worse."""

    column: Column
    scenario: str
    figure: str
    old: str
    new: str
    ratio: float


@dataclass(frozen=True)
class Comparison:
    """What is different. Cells are those of the new run; `gone` is in the old one only."""

    common: int
    """Cells that both have."""
    broken: tuple[Cell, ...]
    """They passed, and fail now."""
    mended: tuple[Cell, ...]
    """They failed, and pass now."""
    gone: tuple[Cell, ...]
    added: tuple[Cell, ...]
    changes: tuple[Change, ...]
    """Figures of cells that passed both times, the worst first."""

    def worse_than(self, tolerance: float) -> list[Change]:
        """Figures that are more than `tolerance` times as bad."""
        return [change for change in self.changes if change.ratio > tolerance]


def compare(old: Results, new: Results) -> Comparison:
    """`new` against `old`, cell by cell: by kernel as it was named, VMM, options, scenario."""
    before, after = _by_place(old), _by_place(new)
    both = [(before[place], cell) for place, cell in after.items() if place in before]
    changes = [
        change
        for one, two in both
        if one.outcome is two.outcome is Outcome.PASSED
        for change in _changes(one, two)
    ]
    return Comparison(
        common=len(both),
        broken=_turned(both, Outcome.PASSED, Outcome.FAILED),
        mended=_turned(both, Outcome.FAILED, Outcome.PASSED),
        gone=tuple(cell for place, cell in before.items() if place not in after),
        added=tuple(cell for place, cell in after.items() if place not in before),
        changes=tuple(sorted(changes, key=lambda change: -change.ratio)),
    )


def lines(found: Comparison, tolerance: float | None) -> list[str]:
    """The comparison for people."""
    told = [f"now fails: {_name(cell)}: {cell.reason}" for cell in found.broken]
    told += [f"passes now: {_name(cell)}" for cell in found.mended]
    told += [f"not run any more: {_name(cell)}" for cell in found.gone]
    told += [f"new: {_name(cell)}: {cell.outcome}" for cell in found.added]
    bad = [] if tolerance is None else found.worse_than(tolerance)
    for change in found.changes:
        mark = " (more than the tolerance)" if change in bad else ""
        told.append(
            f"x{change.ratio:.2f} {change.column} {change.scenario}: {title(change.figure)}"
            f" {change.old} -> {change.new}{mark}"
        )
    stay = len(found.broken) + len(found.mended)
    return [*told, f"{found.common} cells are in both, {found.common - stay} of them end as before"]


def to_json(found: Comparison, tolerance: float | None) -> dict[str, object]:
    """The comparison as plain data."""
    bad = [] if tolerance is None else found.worse_than(tolerance)
    cells = {
        "broken": found.broken,
        "mended": found.mended,
        "gone": found.gone,
        "added": found.added,
    }
    return {
        "common": found.common,
        **{key: [_name(cell) for cell in group] for key, group in cells.items()},
        "changes": [
            {
                "cell": f"{change.column} {change.scenario}",
                "figure": change.figure,
                "old": change.old,
                "new": change.new,
                "ratio": round(change.ratio, 4),
                "beyond-tolerance": change in bad,
            }
            for change in found.changes
        ],
    }


def _by_place(results: Results) -> dict[tuple[Column, str], Cell]:
    return {(cell.column, cell.scenario): cell for cell in results.cells}


def _turned(both: list[tuple[Cell, Cell]], old: Outcome, new: Outcome) -> tuple[Cell, ...]:
    return tuple(two for one, two in both if one.outcome is old and two.outcome is new)


def _changes(old: Cell, new: Cell) -> Iterator[Change]:
    for name, values in new.figures.items():
        before = old.figures.get(name)
        found = ratio(name, before, values) if before else None
        if before and found is not None:
            yield Change(
                new.column, new.scenario, name, shown(name, before), shown(name, values), found
            )


def _name(cell: Cell) -> str:
    return f"{cell.column} {cell.scenario}"
