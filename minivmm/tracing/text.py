"""Events in words: one line each, for people; fields are those of docs/trace.md."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from minivmm.trace import shown
from minivmm.units import format_size

Event = Mapping[str, Any]

_COMMON = frozenset({"n", "t", "guest", "source", "name", "id", "state"})
"""Keys of all events, which have a place of their own in a line, or none."""

_LONGEST = 300
"""Characters of a text that a guest may have a part in."""

_SIZES = frozenset({"requested-size", "usable-size", "plugged"})


def header_line(header: Mapping[str, Any]) -> str:
    """What is being followed, and since when."""
    clock = header["clock"]
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(clock["wall"]))
    devices = "".join(
        f"; {device['id']}: {format_size(device['region-size'])} at {device['memaddr']:#x},"
        f" blocks of {format_size(device['block-size'])}, {_progress(device['state'])}"
        for device in header["devices"]
        if "region-size" in device
    )
    return f"# {header['name']}, began {began}, now at {header['t']:.6f} s{devices}"


def line(event: Event) -> str:
    """`   12.502113 vmem0    answer    #93 PLUG 64 blocks at 0x108000000 (128M): ACK; ...`."""
    head = f"{event['t']:12.6f} {event['source']:<8} {event['name']:<9}"
    return f"{printable(head)} {said(event)}".rstrip()


def said(event: Event) -> str:
    """The same without when, who and what: `#93 PLUG 64 blocks at 0x108000000 (128M): ACK; ...`."""
    number = f"#{event['id']} " if "id" in event else ""
    return printable(f"{number}{_WORDS.get(str(event['name']), _fields)(event)}".rstrip())


def printable(text: str) -> str:
    """`text` in one line, without anything that a terminal would obey."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def asked(event: Event) -> str:
    """`PLUG 64 blocks at 0x108000000 (128M)`: what a `request` or an `answer` is about."""
    if "blocks" not in event:
        return str(event["type"])
    many = "block" if event["blocks"] == 1 else "blocks"
    size = format_size(event["size"])
    return f"{event['type']} {event['blocks']} {many} at {event['gpa']:#x} ({size})"


def duration(seconds: float) -> str:
    """`321 us`, `4.2 ms`, `1.50 s`."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _progress(state: Mapping[str, int]) -> str:
    plugged, wanted = state["plugged-size"], state["requested-size"]
    return f"plugged {format_size(plugged)} of {format_size(wanted)}"


def _fields(event: Event) -> str:
    """Any event: its fields as they are."""
    fields = ((key, value) for key, value in event.items() if key not in _COMMON)
    return " ".join(f"{key}={_value(key, value)}" for key, value in fields)


def _value(key: str, value: object) -> str:
    if key == "seconds" and isinstance(value, float | int):
        return duration(value)
    if key in _SIZES and isinstance(value, int):
        return format_size(value)
    return shown(key, value)[:_LONGEST]


def _kick(event: Event) -> str:
    return f"queue {event['queue']}"


def _chain(event: Event) -> str:
    many = "descriptor" if event["descriptors"] == 1 else "descriptors"
    return (
        f"queue {event['queue']}: {event['readable']} bytes to read, {event['writable']} to write,"
        f" {event['descriptors']} {many}"
    )


def _answer(event: Event) -> str:
    why = f" ({event['why']})" if "why" in event else ""
    state = f"; {_progress(event['state'])}" if "state" in event else ""
    found = f" {event['found']}" if "found" in event else ""
    return f"{asked(event)}: {event['answer']}{found}{why}{state}"


def _used(event: Event) -> str:
    return f"queue {event['queue']}: {event['written']} bytes, {duration(event['seconds'])}"


def _interrupt(event: Event) -> str:
    ids = event["ids"]
    more = f", for #{', #'.join(map(str, ids))}" if len(ids) > 1 else ""
    return f"queue {event['queue']}{more}"


def _host_work(event: Event) -> str:
    """allow, populate, show, hide, discard."""
    error = f": {event['error']}" if "error" in event else ""
    size = format_size(event["size"])
    return f"{size} at {event['gpa']:#x}, {duration(event['seconds'])}{error}"


def _resize(event: Event) -> str:
    wanted, usable = event["requested-size"], event["usable-size"]
    return f"requested {format_size(wanted)}, usable {format_size(usable)}"


def _exit(event: Event) -> str:
    if "kind" not in event:
        return _fields(event)  # a command in the guest ended
    place = ""
    if "port" in event:
        place = f" port {event['port']:#x}"
    elif "gpa" in event:
        place = f" {event['gpa']:#x}"
    size = f", size {event['size']}" if "size" in event else ""
    times = f" x {event['count']}" if event.get("count", 1) > 1 else ""
    value = f", value {event['value']}" if "value" in event else ""
    return f"{event['kind']}{place}{size}{times}{value}, {duration(event['seconds'])}"


def _dropped(event: Event) -> str:
    return f"{event['count']} events are missing here"


_WORDS: dict[str, Callable[[Event], str]] = {
    "kick": _kick,
    "chain": _chain,
    "request": asked,
    "answer": _answer,
    "used": _used,
    "interrupt": _interrupt,
    **dict.fromkeys(("allow", "populate", "show", "hide", "discard"), _host_work),
    "resize": _resize,
    "exit": _exit,
    "dropped": _dropped,
}
