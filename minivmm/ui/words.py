"""Words for people: an event's fields, a size, as views show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minivmm.tracing.text import printable, said
from minivmm.units import GIB, KIB, MIB, TIB, format_size

LONGEST = 200
"""Characters of an event's text; tracebacks are not for a line."""


def describe(event: Mapping[str, Any]) -> str:
    """What `event` (docs/trace.md) tells, in one line: `PLUG 64 blocks at 0x108000000 (128M): ACK`.

    An event that lacks what its name promises, as of a newer minivmm, is shown as it is.
    """
    try:
        text = said(event)
    except (KeyError, TypeError, ValueError):
        text = printable(" ".join(f"{key}={value}" for key, value in event.items()))
    if "plugged" in event and "state" not in event:
        text += f"; plugged {format_size(event['plugged'])}"
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def rough_size(size: float) -> str:
    """About `size` bytes: `1.5G`, `312M`, `-2M`, `0`."""
    for suffix, unit in (("T", TIB), ("G", GIB), ("M", MIB), ("K", KIB)):
        if abs(size) >= unit:
            shown = f"{size / unit:.1f}" if abs(size) < 10 * unit else f"{size / unit:.0f}"
            return shown.removesuffix(".0") + suffix
    return f"{size:.0f}"
