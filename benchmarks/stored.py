"""A run of all benchmarks as it is stored in docs/performance.json, and its tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, from_json, markdown, to_json

HOST, LAB = "host", "lab"


@dataclass(frozen=True)
class Part:
    """One benchmark in one place."""

    place: str
    """HOST, or LAB: where KVM runs stock guests, a host that can do that included."""
    module: str
    seconds: float = 0.0
    """That it took."""
    figures: tuple[Figure, ...] = ()
    failed: str = ""
    """Why there are no figures: what it said last."""


@dataclass(frozen=True)
class Run:
    """All of them."""

    when: str
    """UTC, as ISO 8601."""
    seconds: float
    """From the start to the end, with that of the lab."""
    versions: Mapping[str, str]
    hosts: Mapping[str, Mapping[str, Any]]
    """Place -> minivmm.matrix.host.about_host()."""
    parts: tuple[Part, ...] = field(default=())

    @property
    def missed(self) -> list[Figure]:
        """Figures whose goal is not met."""
        return [figure for part in self.parts for figure in part.figures if figure.met is False]

    @property
    def failed(self) -> list[Part]:
        """Parts that came to no end."""
        return [part for part in self.parts if part.failed]


def write(run: Run, path: Path) -> None:
    """Store `run`."""
    plain = {**vars(run), "parts": [part_to_json(part) for part in run.parts]}
    path.write_text(json.dumps(plain, indent=1) + "\n")


def read(path: Path) -> Run:
    """What `write` stored."""
    plain = json.loads(path.read_text())
    return Run(**{**plain, "parts": tuple(part_from_json(part) for part in plain["parts"])})


def part_to_json(part: Part) -> dict[str, Any]:
    """Plain data."""
    return {**vars(part), "figures": [to_json(figure) for figure in part.figures]}


def part_from_json(data: Mapping[str, Any]) -> Part:
    """What `part_to_json` made plain."""
    return Part(**{**data, "figures": tuple(from_json(figure) for figure in data["figures"])})


def by_place(run: Run, table: Callable[[Iterable[Figure]], str] = markdown) -> str:
    """A table of the figures of each place, with what the machine is; then what failed, missed."""
    pieces = []
    for place, host in run.hosts.items():
        figures = [figure for part in run.parts if part.place == place for figure in part.figures]
        pieces.append(f"{_about(host)}\n\n{table(figures)}")
    pieces += [f"{part.module} ({part.place}) failed: {part.failed}\n" for part in run.failed]
    with_goal = sum(figure.met is not None for part in run.parts for figure in part.figures)
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    pieces.append(
        f"{with_goal - len(run.missed)} of {with_goal} goals are met. The run took"
        f" {run.seconds / 60:.1f} minutes, {run.when}; {versions}.\n"
    )
    return "\n".join(pieces)


def details(run: Run) -> str:
    """The counts behind the figures, as a list of Markdown."""
    rows = []
    for part in run.parts:
        for figure in part.figures:
            if figure.detail:
                found = figure.detail.items()
                counts = ", ".join(f"{name} {count:g}" for name, count in found if count)
                rows.append(f"* {figure.name} ({part.place}): {counts}\n")
    return "".join(rows)


def _about(host: Mapping[str, Any]) -> str:
    what = "In the lab, where all is emulated" if host["lab"] else "On the host"
    cpus = f"{host['cpus']} CPU{'s' if host['cpus'] > 1 else ''}"
    return f"{what}: {cpus} ({host['cpu']}), Linux {host['kernel']}."
