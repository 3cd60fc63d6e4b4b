"""How figures are called and shown, and which way of a change is for the worse."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TITLES = {
    "grow-seconds-per-gib": "grow",
    "shrink-seconds-per-gib": "shrink",
    "unplugged-fraction": "unplugged",
    "movable-fraction": "movable",
    "gain-fraction": "usable",
    "reboot-seconds": "reboot",
    "kexec-seconds": "kexec",
    "boot-with-seconds": "boot with device",
    "boot-without-seconds": "without",
    "boot-with-exits": "exits with device",
    "boot-without-exits": "without",
    "offline-count": "blocks offline",
    "rounds-count": "rounds of load",
}
"""Figure -> what tables call it; others go by their own names."""


@dataclass(frozen=True)
class _Unit:
    suffix: str
    show: str
    """A format for one value."""
    scale: float = 1.0
    worse: int = 0
    """1: more is worse, -1: less is worse, 0: neither."""


_UNITS = (
    _Unit("-seconds-per-gib", "{:.2f} s/GiB", worse=1),
    _Unit("-seconds", "{:.1f} s", worse=1),
    _Unit("-exits", "{:.0f}", worse=1),
    _Unit("-count", "{:.0f}"),
    _Unit("-fraction", "{:.1f} %", scale=100.0),
)
_OTHER = _Unit("", "{:g}")
_LESS_IS_WORSE = ("unplugged-fraction", "gain-fraction")


def title(name: str) -> str:
    """What a table calls it."""
    return TITLES.get(name, name)


def middle(values: Sequence[float]) -> float:
    """The median: what tables show of several repetitions."""
    return statistics.median(values)


def shown(name: str, values: Sequence[float]) -> str:
    """The median with its unit; with several that differ, the lowest and the highest too."""
    unit = _unit(name)
    text = unit.show.format(middle(values) * unit.scale)
    low, high = (unit.show.format(edge(values) * unit.scale) for edge in (min, max))
    if low == high:
        return text
    return f"{text} ({low.partition(' ')[0]} to {high.partition(' ')[0]})"


def summary(figures: Mapping[str, Sequence[float]]) -> str:
    """All of a cell in one line."""
    return ", ".join(f"{title(name)} {shown(name, values)}" for name, values in figures.items())


def ratio(name: str, old: Sequence[float], new: Sequence[float]) -> float | None:
    """How often as bad the new figure is; None if it has no good and bad, or cannot be told."""
    worse = -1 if name in _LESS_IS_WORSE else _unit(name).worse
    before, after = middle(old), middle(new)
    if worse < 0:
        before, after = after, before
    return after / before if worse and before > 0 else None


def _unit(name: str) -> _Unit:
    return next((unit for unit in _UNITS if name.endswith(unit.suffix)), _OTHER)
