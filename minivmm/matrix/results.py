"""What a run of the matrix found, as data, and as the JSON file that is stored and compared."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from minivmm.errors import HostError, UsageError

SCHEMA = 1
"""Version of the file's format: it only grows, so this stays until something must be taken away."""

KIND = "minivmm-matrix"


class Outcome(StrEnum):
    """What became of a cell."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Leaks:
    """What a scenario left behind, compared with before it; `held` is of unplugged memory."""

    fds: int
    threads: int
    resident: int
    """Bytes by which the VMM has grown; told, and no failure."""
    held: int
    """Bytes of host memory behind memory that is not plugged."""

    def why(self) -> str | None:
        """What of this is a failure, in words."""
        wrong = []
        if self.fds > 0:
            wrong.append(f"{self.fds} files left open")
        if self.threads > 0:
            wrong.append(f"{self.threads} threads left")
        if self.held > 0:
            wrong.append(f"{self.held} bytes of host memory behind unplugged memory")
        return ", ".join(wrong) or None


@dataclass(frozen=True)
class Column:
    """What a guest runs on: the kernel as it was named, the VMM, options of its device."""

    kernel: str
    vmm: str
    options: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.kernel, self.vmm, self.options)))


@dataclass(frozen=True)
class Cell:
    """A scenario in a column; `figures` hold one value for each repetition."""

    column: Column
    scenario: str
    outcome: Outcome
    reason: str = ""
    seconds: float = 0.0
    """Host's time for all of it, boot included."""
    figures: Mapping[str, list[float]] = field(default_factory=dict)
    leaks: Leaks | None = None
    pace: float = 0.0
    """Seconds that a fixed piece of work took around it: more, the more the host had to do."""
    console: str = ""
    """The end of the guest's console, if it failed."""


@dataclass
class Results:
    """A run: what it was about (`made`: host, versions, suite), and its cells."""

    made: dict[str, Any]
    cells: list[Cell] = field(default_factory=list)
    interrupted: bool = False

    @property
    def failed(self) -> list[Cell]:
        """The cells that failed."""
        return [cell for cell in self.cells if cell.outcome is Outcome.FAILED]


def to_json(results: Results) -> dict[str, Any]:
    """The file's content."""
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "interrupted": results.interrupted,
        "made": results.made,
        "cells": [_cell_to_json(cell) for cell in results.cells],
    }


def _cell_to_json(cell: Cell) -> dict[str, Any]:
    row: dict[str, Any] = {**dataclasses.asdict(cell.column), "scenario": cell.scenario}
    row |= {"outcome": str(cell.outcome), "seconds": round(cell.seconds, 1)}
    row["pace"] = round(cell.pace, 4)
    row["figures"] = {
        name: [round(value, 4) for value in values] for name, values in cell.figures.items()
    }
    row["leaks"] = None if cell.leaks is None else dataclasses.asdict(cell.leaks)
    row |= {"reason": cell.reason} if cell.reason else {}
    row |= {"console": cell.console} if cell.console else {}
    return row


def from_json(data: Any, name: str) -> Results:
    """The results in `data`, read from file `name`. Raises UsageError."""
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise UsageError(f"{name} is not a result of `minivmm matrix`")
    if data.get("schema") != SCHEMA:
        raise UsageError(
            f"{name} has schema {data.get('schema')!r}, this minivmm reads {SCHEMA}: run it again"
        )
    try:
        cells = [_cell_from_json(row) for row in data["cells"]]
        return Results(dict(data["made"]), cells, bool(data["interrupted"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{name} is damaged: {type(error).__name__}: {error}") from None


def _cell_from_json(row: Mapping[str, Any]) -> Cell:
    return Cell(
        Column(row["kernel"], row["vmm"], row["options"]),
        row["scenario"],
        Outcome(row["outcome"]),
        row.get("reason", ""),
        float(row["seconds"]),
        {name: [float(value) for value in values] for name, values in row["figures"].items()},
        None if row["leaks"] is None else Leaks(**row["leaks"]),
        float(row["pace"]),
        row.get("console", ""),
    )


def read(path: Path) -> Results:
    """The results in file `path`. Raises UsageError."""
    try:
        return from_json(json.loads(path.read_text()), str(path))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from None


def write(path: Path, results: Results) -> None:
    """Store `results`; the file is whole at any moment. Raises HostError."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(json.dumps(to_json(results), indent=1) + "\n")
        part.replace(path)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from None
