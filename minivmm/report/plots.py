"""Figures fit for a paper, drawn by matplotlib; which numbers they show is series.py's matter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minivmm.errors import HostError
from minivmm.report import series
from minivmm.report.resizes import Request, find_requests
from minivmm.report.story import MemoryDevice, Story
from minivmm.units import GIB, format_size

SIZE = (6.4, 2.6)
"""Inches: as wide as a text column."""

DPI = 200
"""Of PNG files."""


@dataclass(frozen=True)
class _Shown:
    """What figures are of: a device of a trace, and its requests."""

    story: Story
    device: MemoryDevice
    requests: Sequence[Request]


def write_plots(story: Story, directory: Path, kinds: Sequence[str]) -> list[Path]:
    """Write the figures of each device as DEVICE-FIGURE.KIND ("svg", "png"); what was written.

    Raises HostError without matplotlib or where nothing can be written.
    """
    pyplot = _pyplot()
    written: list[Path] = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for device in story.devices:
            shown = _Shown(story, device, find_requests(story, device.id))
            for name, draw in _FIGURES.items():
                figure, axes = pyplot.subplots(figsize=SIZE, layout="constrained")
                if draw(axes, shown):
                    for kind in kinds:
                        path = directory / f"{device.id}-{name}.{kind}"
                        figure.savefig(path, dpi=DPI)
                        written.append(path)
                pyplot.close(figure)
    except OSError as error:
        raise HostError(f"figures cannot be written to {directory}: {error.strerror}") from None
    return written


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise HostError(
            "figures need matplotlib: pip install 'minivmm[plot]' (the page needs nothing)"
        ) from None
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"font.size": 8, "svg.fonttype": "none", "svg.hashsalt": "minivmm"})
    from matplotlib import pyplot

    return pyplot


def _sizes(axes: Any, shown: _Shown) -> bool:
    found = series.sizes(shown.story, shown.device)
    for name, steps, style in (
        ("requested", found.requested, "--"),
        ("plugged", found.plugged, "-"),
    ):
        times = [time - shown.story.begin for time, _ in steps]
        axes.step(times, [size / GIB for _, size in steps], style, where="post", label=name)
    axes.set_xlabel("time (s)")
    axes.set_ylabel("size (GiB)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return True


def _latency(axes: Any, shown: _Shown) -> bool:
    found = series.latencies(shown.requests)
    for one in found:
        shares = [(at + 1) / len(one.sorted) for at in range(len(one.sorted))]
        axes.step([value * 1e3 for value in one.sorted], shares, where="post", label=one.type)
    axes.set_xscale("log")
    axes.set_xlabel("request latency (ms)")
    axes.set_ylabel("share of requests")
    if found:
        axes.legend(frameon=False)
    return bool(found)


def _blocks(axes: Any, shown: _Shown) -> bool:
    found = series.block_map(shown.story, shown.device, shown.requests)
    if found is None:
        return False
    rows = len(found.cells)
    high = rows * found.piece / GIB
    span = (0, found.times[-1] - found.times[0] or 1.0)
    axes.imshow(
        found.cells,
        aspect="auto",
        origin="lower",
        cmap="Blues",
        vmin=0,
        vmax=1,
        interpolation="nearest",
        extent=(*span, 0, high),
    )
    axes.set_xlabel("time (s)")
    axes.set_ylabel(f"offset in region (GiB),\n{format_size(found.piece)} a row")
    return True


def _answers(axes: Any, shown: _Shown) -> bool:
    found = series.answers(shown.requests)
    names = [f"{kind} {answer}" for kind, answer in sorted(found)]
    bars = axes.barh(names, [found[key] for key in sorted(found)])
    axes.bar_label(bars, padding=2)
    axes.set_xlabel("answers")
    return bool(found)


_FIGURES: dict[str, Callable[[Any, _Shown], bool]] = {
    "sizes": _sizes,
    "latency": _latency,
    "blocks": _blocks,
    "answers": _answers,
}
"""Name of a figure, and what draws it on axes; false if there is nothing to show."""
