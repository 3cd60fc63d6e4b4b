"""The page: one HTML file that needs nothing else, made of a trace's numbers and charts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from minivmm.report import series, svg
from minivmm.report.resizes import STATES, Request, Resize, find_requests, find_resizes
from minivmm.report.story import MemoryDevice, Story
from minivmm.units import GIB, format_size

MOST_ROWS = 2000
"""Requests that the page lists for a device; the trace has them all."""

QUANTILES = (0.5, 0.9, 0.99, 1.0)


def page(story: Story) -> str:
    """The report on `story`, as HTML."""
    title = f"Resizes of {escape(story.name)}"
    css = files("minivmm.report").joinpath("page.css").read_text()
    parts = [_summary(story)]
    parts += [_device(story, device) for device in story.devices]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width">'
        f"<style>{css}</style></head><body><h1>{title}</h1>{''.join(parts)}</body></html>\n"
    )


def _summary(story: Story) -> str:
    header = story.header
    seconds = story.end - story.begin
    text = (
        f"{len(story.events)} events in {seconds:.3f} s, written by minivmm"
        f" {header.get('minivmm', '')}. Times are seconds since the machine began."
    )
    warnings = [*_gaps(story)]
    return f'<p class="soft">{escape(text)}</p>' + "".join(
        f'<p class="warn">{escape(line)}</p>' for line in warnings
    )


def _gaps(story: Story) -> Iterable[str]:
    """What the reader must know of before believing the figures."""
    if story.dropped:
        yield (
            f"{story.dropped} events are missing: the trace was written more slowly than the"
            " machine ran. Sums below are too small."
        )
    if not story.has_requests:
        yield "The trace lacks the life of requests (details: requests): there are no latencies."
    if story.header.get("filter"):
        yield f"The trace was filtered by {story.header['filter']}: the rest is not here."
    if not story.devices:
        yield "The machine has no virtio-mem device."


def _device(story: Story, device: MemoryDevice) -> str:
    requests = find_requests(story, device.id)
    resizes = find_resizes(story, device, requests)
    about = (
        f"{format_size(device.region_size)} at {device.memaddr:#x}, blocks of"
        f" {format_size(device.block_size)}, node {device.node}"
    )
    parts = [
        f'<h2>{escape(device.id)} <small class="soft">{about}</small></h2>',
        _resizes(resizes),
        _figure(
            svg.sizes_chart(series.sizes(story, device)),
            _keys(("requested", 1), ("plugged", 0)),
        ),
        _map_figure(story, device, requests),
        _latencies(requests),
        _answers(requests),
        _request_list(requests),
    ]
    return "".join(parts)


def _resizes(resizes: Sequence[Resize]) -> str:
    if not resizes:
        return '<p class="soft">Nobody set a size during the trace.</p>'
    head = ("at", "plugged", "requested", "at the end", "took", "per GiB", "requests", "outcome")
    rows = [
        (
            f"{one.began:.3f}",
            format_size(one.before),
            format_size(one.target),
            format_size(one.after),
            _seconds(one.seconds),
            _seconds(one.seconds / one.moved * GIB) if one.moved else "",
            str(len(one.requests)),
            one.outcome,
        )
        for one in resizes
    ]
    return "<h3>Resizes</h3>" + _table(head, rows) + _time_split(resizes)


def _time_split(resizes: Sequence[Resize]) -> str:
    states = [state for state in STATES if any(state in one.memory for one in resizes)]
    rows = [
        (
            f"{one.began:.3f}",
            _seconds(one.wake),
            _seconds(one.driver),
            _seconds(one.device_share),
            _seconds(one.host),
            _bar(one),
            *(_state(one, state) for state in states),
        )
        for one in resizes
    ]
    text = (
        "woke: from the configuration interrupt to the first request. host: memory given, taken,"
        " allocated and given back, for requests. device: the rest of the time from taking"
        " requests to returning them. driver: all other time, which is the guest's."
    )
    if states:
        text += (
            f" {', '.join(states)}: when the last piece of memory got there, after the beginning of"
            " the resize."
        )
    return (
        "<h3>Where the time went</h3>"
        + _table(("at", "woke", "driver", "device", "host", "", *states), rows)
        + f'<p class="soft">{text}</p>'
    )


def _state(one: Resize, state: str) -> str:
    if state not in one.memory:
        return ""
    time, size = one.memory[state]
    return f"{_seconds(time - one.began)} ({format_size(size)})"


def _bar(one: Resize) -> str:
    total = one.seconds or 1.0
    shares = (("driver", one.driver), ("device", one.device_share), ("host", one.host))
    parts = [
        f'<i class="{name}" style="width:{100 * part / total:.1f}%" title="{name}"></i>'
        for name, part in shares
    ]
    return f'<div class="bar">{"".join(parts)}</div>'


def _map_figure(story: Story, device: MemoryDevice, requests: Sequence[Request]) -> str:
    found = series.block_map(story, device, requests)
    if found is None:
        return '<p class="soft">No block map: the trace does not know where it began.</p>'
    caption = f"plugged blocks: gpa upwards, {format_size(found.piece)} in a row"
    return _figure(svg.block_map_chart(found), caption)


def _latencies(requests: Sequence[Request]) -> str:
    found = series.latencies(requests)
    if not found:
        return ""
    head = ("request", "count", *(f"{share:.0%}" for share in QUANTILES))
    rows = [
        (
            escape(one.type),
            str(len(one.sorted)),
            *(_seconds(one.quantile(share)) for share in QUANTILES),
        )
        for one in found
    ]
    keys = _keys(*((one.type, at % 4) for at, one in enumerate(found)))
    return (
        "<h3>Request latency: from taken to returned</h3>"
        + _table(head, rows)
        + _figure(svg.latency_chart(found), f"share of requests that took at most so long {keys}")
    )


def _answers(requests: Sequence[Request]) -> str:
    if not requests:
        return ""
    found = series.answers(requests)
    kinds = sorted({answer for _, answer in found})
    types = sorted({kind for kind, _ in found})
    rows = [
        (escape(kind), *(str(found.get((kind, answer), 0)) for answer in kinds)) for kind in types
    ]
    return "<h3>Answers</h3>" + _table(("request", *map(escape, kinds)), rows)


def _request_list(requests: Sequence[Request]) -> str:
    head = ("at", "request", "gpa", "blocks", "size", "answer", "took", "host", "why")
    rows = [
        (
            f"{one.t:.6f}",
            escape(one.type),
            "" if one.gpa is None else f"{one.gpa:#x}",
            str(one.blocks or ""),
            format_size(one.size) if one.size else "",
            escape(one.answer),
            _seconds(one.seconds),
            _seconds(one.host) if one.host else "",
            escape(one.why),
        )
        for one in requests[:MOST_ROWS]
    ]
    said = f"{len(requests)} requests"
    if len(requests) > MOST_ROWS:
        said += f", the first {MOST_ROWS} of them"
    return f"<details><summary>{said}</summary>{_table(head, rows)}</details>"


def _figure(chart: str, caption: str) -> str:
    return f"<figure>{chart}<figcaption>{caption}</figcaption></figure>"


def _keys(*names: tuple[str, int]) -> str:
    return "".join(f'<span class="key k{colour}"></span>{escape(name)}' for name, colour in names)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of HTML cells."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'


def _seconds(value: float | None) -> str:
    """A duration in a unit that fits it."""
    if value is None:
        return ""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}" if value < 1000 * size else f"{value:.0f} s"
    return f"{value * 1e6:.3g} µs"
