"""Small charts as SVG text, for the page: they take the page's colours and need no library."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from minivmm.report.series import BlockMap, Latency, Sizes, Steps
from minivmm.units import MIB, format_size

WIDTH, HEIGHT = 860, 240
"""Pixels of a chart."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 104, 24, 10, 34
_TICKS = 6


def sizes_chart(sizes: Sizes) -> str:
    """Requested and plugged over time."""
    steps = {"requested": sizes.requested, "plugged": sizes.plugged}
    x = _scale(_span(sizes.plugged), _LEFT, WIDTH - _RIGHT)
    top = max(size for line in steps.values() for _, size in line) or MIB
    y = _scale((0, top), HEIGHT - _BOTTOM, _TOP)
    lines = [
        f'<path class="{name}" d="{_stairs(line, x, y)}"><title>{name}</title></path>'
        for name, line in steps.items()
    ]
    ticks = range(0, top + 1, 1 << (top // _TICKS).bit_length())
    axes = [
        *_time_axis(_span(sizes.plugged), x),
        *_y_axis(ticks, y, lambda size: format_size(int(size))),
    ]
    return _svg([*axes, *lines], "requested and plugged size over time")


def block_map_chart(found: BlockMap) -> str:
    """Address upwards, time to the right, the darker the more of a piece is plugged."""
    rows, columns = len(found.cells), len(found.times)
    x = _scale((0, columns), _LEFT, WIDTH - _RIGHT)
    y = _scale((0, rows), HEIGHT - _BOTTOM, _TOP)
    cells = [
        _cell(found, row, start, end, share, x, y)
        for row, line in enumerate(found.cells)
        for start, end, share in _runs(line)
        if share
    ]
    time = _scale((found.times[0], found.times[-1]), _LEFT, WIDTH - _RIGHT)
    gpas = sorted({0, rows // 2, rows})
    labels = _y_axis(gpas, y, lambda row: f"{found.first + int(row) * found.piece:#x}")
    axis = _time_axis((found.times[0], found.times[-1]), time)
    return _svg([*axis, *labels, *cells], "plugged blocks over time")


def latency_chart(found: Sequence[Latency]) -> str:
    """Share of requests that took at most so long, by type; time is logarithmic."""
    low = min(one.sorted[0] for one in found)
    high = max(one.sorted[-1] for one in found)
    first, last = math.floor(math.log10(max(low, 1e-7))), math.ceil(math.log10(max(high, 1e-6)))
    x = _scale((first, max(last, first + 1)), _LEFT, WIDTH - _RIGHT)
    y = _scale((0, 1), HEIGHT - _BOTTOM, _TOP)
    lines = [
        f'<path class="line{at % 4}" d="{_distribution(one, x, y)}">'
        f"<title>{escape(one.type)}</title></path>"
        for at, one in enumerate(found)
    ]
    decades = range(first, max(last, first + 1) + 1)
    axis = [_tick_x(x(decade), _seconds(10.0**decade)) for decade in decades]
    shares = _y_axis([0, 0.25, 0.5, 0.75, 1], y, lambda share: f"{share:.0%}")
    return _svg([*axis, *shares, *lines], "distribution of request latency")


def _svg(parts: Sequence[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        + "".join(parts)
        + "</svg>"
    )


Scale = Callable[[float], float]


def _scale(values: tuple[float, float], low: float, high: float) -> Scale:
    begin, end = values
    width = (end - begin) or 1.0
    return lambda value: round(low + (value - begin) / width * (high - low), 2)


def _span(steps: Steps) -> tuple[float, float]:
    return steps[0][0], steps[-1][0]


def _stairs(steps: Steps, x: Scale, y: Scale) -> str:
    moves = [f"M{x(steps[0][0])} {y(steps[0][1])}"]
    moves += [f"H{x(time)}V{y(size)}" for time, size in steps[1:]]
    return "".join(moves)


def _distribution(one: Latency, x: Scale, y: Scale) -> str:
    count = len(one.sorted)
    every = max(1, count // 400)
    moves = [f"M{x(math.log10(max(one.sorted[0], 1e-7)))} {y(0)}"]
    for at in [*range(0, count, every), count - 1]:
        moves.append(f"H{x(math.log10(max(one.sorted[at], 1e-7)))}V{y((at + 1) / count)}")
    return "".join(moves)


def _runs(line: Sequence[float]) -> list[tuple[int, int, float]]:
    """(first column, column after the last, share) of equal neighbours."""
    found: list[tuple[int, int, float]] = []
    for at, share in enumerate(line):
        if found and found[-1][2] == share:
            found[-1] = (found[-1][0], at + 1, share)
        else:
            found.append((at, at + 1, share))
    return found


def _cell(found: BlockMap, row: int, start: int, end: int, share: float, x: Scale, y: Scale) -> str:
    gpa = found.first + row * found.piece
    title = f"{gpa:#x}: {share:.0%} of {format_size(found.piece)} from {found.times[start]:.3f} s"
    return (
        f'<rect class="plugged" x="{x(start)}" y="{y(row + 1)}" width="{x(end) - x(start):.2f}"'
        f' height="{y(row) - y(row + 1):.2f}" fill-opacity="{0.15 + 0.85 * share:.2f}">'
        f"<title>{title}</title></rect>"
    )


def _time_axis(span: tuple[float, float], x: Scale) -> list[str]:
    return [_tick_x(x(tick), f"{tick:g} s") for tick in _round_ticks(*span)]


def _tick_x(at: float, label: str) -> str:
    foot = HEIGHT - _BOTTOM
    return (
        f'<path class="grid" d="M{at} {_TOP}V{foot}"/>'
        f'<text x="{at}" y="{foot + 18}" text-anchor="middle">{escape(label)}</text>'
    )


def _y_axis(ticks: Sequence[float], y: Scale, label: Callable[[float], str]) -> list[str]:
    return [
        f'<path class="grid" d="M{_LEFT} {y(tick)}H{WIDTH - _RIGHT}"/>'
        f'<text x="{_LEFT - 8}" y="{y(tick) + 4}" text-anchor="end">{escape(label(tick))}</text>'
        for tick in ticks
    ]


def _round_ticks(low: float, high: float) -> list[float]:
    """A few round numbers from `low` to `high`."""
    width = (high - low) or 1.0
    step = 10.0 ** math.floor(math.log10(width / _TICKS))
    step *= next(factor for factor in (1, 2, 5, 10) if width / (step * factor) <= _TICKS)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(at * step, 9) for at in range(first, last + 1)]


def _seconds(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size * 0.999:
            return f"{value / size:g} {unit}"
    return f"{value * 1e9:g} ns"
