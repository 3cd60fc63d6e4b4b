"""How verbs read and write: durations, JSON, tables, lines on stderr. No VM is spoken to here."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence

from minivmm.errors import UsageError

SCHEMA = 1
"""Version of the JSON output; it only grows, so this stays until something must be taken away."""

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)?")
LONGEST = 365 * 24 * 3600.0
"""Seconds: what timers and sockets of the system take for certain."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


def parse_duration(text: str) -> float:
    """Seconds in `30`, `30s`, `1.5m`, `500ms`, `1h`. Raises UsageError."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise UsageError(f"duration {text!r} is not understood (examples: 30s, 500ms, 2m)")
    seconds = float(match.group(1)) * _UNITS[match.group(2)]
    if seconds > LONGEST:
        raise UsageError(f"duration {text!r} is too long: at most {LONGEST / 3600:.0f}h")
    return seconds


def print_json(data: Mapping[str, object]) -> None:
    """One object on stdout, with the schema's version."""
    print(json.dumps({"schema": SCHEMA, **data}))


def print_table(rows: Iterable[Sequence[str]]) -> None:
    """Rows of texts on stdout, in aligned columns; the first row is the heading."""
    table = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def say(text: str) -> None:
    """One line of ours on stderr."""
    print(f"minivmm: {text}", file=sys.stderr, flush=True)


def add_json(parser: argparse.ArgumentParser) -> None:
    """The --json option."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_device(parser: argparse.ArgumentParser) -> None:
    """The --device ID option of verbs that act on one memory device or on all."""
    parser.add_argument("--device", metavar="ID", help="only this memory device (default: all)")


def add_device_verb(parser: argparse.ArgumentParser) -> None:
    """Options of a verb that does one thing to memory devices: NAME, --device, --json."""
    add_name(parser)
    add_device(parser)
    add_json(parser)


def chosen_device(args: argparse.Namespace) -> dict[str, str]:
    """--device as an argument of x-minivmm commands."""
    return {} if args.device is None else {"id": args.device}


def add_name(parser: argparse.ArgumentParser) -> None:
    """The NAME argument of verbs that act on one VM."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="VM; optional if only one runs")
