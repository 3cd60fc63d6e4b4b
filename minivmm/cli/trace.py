"""`minivmm trace`: what a VM does, as it happens, or what a trace file tells; also for Perfetto."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minivmm import runtime
from minivmm.cli.text import parse_duration, say
from minivmm.errors import HostError, UsageError
from minivmm.trace import Detail
from minivmm.tracing.reader import Recording, follow, read_file
from minivmm.tracing.text import header_line, line
from minivmm.tracing.wish import Filter, Wish, parse_details


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add = parser.add_argument
    add(
        "name",
        nargs="?",
        metavar="NAME|FILE",
        help="VM, or a file that boot --trace or trace --json wrote; optional if only one VM runs",
    )
    add(
        "--filter",
        metavar="WHAT",
        action="append",
        default=[],
        help="only SOURCE, SOURCE:NAME or :NAME ('vmem*:answer'); with ! in front: not that;"
        " may be repeated",
    )
    add("--exits", action="store_true", help="every exit of the vCPUs as well")
    add(
        "--details",
        metavar="LIST",
        help="which events that exist on demand only: requests,exits,memory (default: requests)",
    )
    add("--duration", metavar="T", help="end after T (10s, 2m)")
    add("--json", action="store_true", help="JSON Lines as in docs/trace.md: a header, then events")
    add("--perfetto", metavar="OUT", help="write OUT for ui.perfetto.dev instead")


def run(args: argparse.Namespace) -> int:
    """Show events until the trace or the time is over, or Ctrl-C: all of them are success."""
    if args.json and args.perfetto is not None:
        raise UsageError("--json and --perfetto exclude each other")
    recording = _open(args)
    try:
        if args.perfetto is not None:
            _write_perfetto(recording, Path(args.perfetto))
        elif args.json:
            _show_json(recording)
        else:
            _show(recording)
    except KeyboardInterrupt:
        pass  # the way to end it
    return 0


def _open(args: argparse.Namespace) -> Recording:
    patterns = tuple(args.filter)
    if _is_file(args.name):
        if args.exits or args.details is not None or args.duration is not None:
            raise UsageError("--exits, --details and --duration are for running VMs, not for files")
        recording, filter_ = read_file(Path(args.name)), Filter(patterns)
        kept = (e for e in recording.events if filter_.wants(e["source"], e["name"]))
        return Recording(recording.header, kept)
    details = Wish.details if args.details is None else parse_details(args.details)
    seconds = None if args.duration is None else parse_duration(args.duration)
    wish = Wish((*details, Detail.EXITS) if args.exits else details, patterns)
    entry = runtime.find(args.name)
    return follow(entry.trace_socket, wish, seconds=seconds)


def _is_file(name: str | None) -> bool:
    return name is not None and ("/" in name or Path(name).is_file())


def _show(recording: Recording) -> None:
    print(header_line(recording.header), flush=True)
    for event in recording.events:
        print(line(event), flush=True)


def _show_json(recording: Recording) -> None:
    print(json.dumps(recording.header), flush=True)
    for event in recording.events:
        print(json.dumps(event), flush=True)


def _write_perfetto(recording: Recording, path: Path) -> None:
    """Raises HostError if it cannot be written."""
    from minivmm.tracing.perfetto import convert

    count = 0

    def counted() -> Iterator[dict[str, Any]]:
        nonlocal count
        try:
            for event in recording.events:
                count += 1
                yield event
        except KeyboardInterrupt:
            return  # what came so far is a trace as well

    try:
        with path.open("wb") as out:
            for packet in convert(recording.header, counted()):
                out.write(packet)
    except OSError as error:
        raise HostError(
            f"cannot write {path}: {error.strerror}: name another file with --perfetto"
        ) from None
    if sys.stderr is not None:
        say(f"{path}: {count} events, for https://ui.perfetto.dev")
