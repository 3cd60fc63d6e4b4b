"""`minivmm snapshot`: saves a running VM into a directory, or checks such a directory."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from minivmm import runtime
from minivmm.cli.text import add_json, print_json, say
from minivmm.control.client import Client
from minivmm.errors import ExitStatus, Interrupted, Refused, UsageError
from minivmm.units import MIB, format_size

POLL = 0.1
"""Seconds between looks at how far it got."""

CANCEL = 10.0
"""Seconds that a snapshot may take to come to nothing."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.usage = (
        "minivmm snapshot [NAME] DIR [--track | --base DIR0] [-q] [--json]\n"
        "       minivmm snapshot --verify DIR [--json]"
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="[NAME] DIR",
        help="the VM (optional if only one runs), and a directory that does not exist yet;"
        " `minivmm boot --restore DIR` goes on from it",
    )
    parser.add_argument(
        "--base",
        metavar="DIR0",
        help="store only what changed since DIR0, the snapshot taken last with --track or --base",
    )
    parser.add_argument(
        "--track", action="store_true", help="keep a log of changes, for a later --base"
    )
    parser.add_argument(
        "--verify", action="store_true", help="compare all of DIR with its checksums"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Take a snapshot and wait for it, or verify one; Ctrl-C leaves none, and the VM runs on."""
    if args.verify:
        return _verify(args)
    if len(args.words) > 2:
        raise UsageError(f"snapshot takes [NAME] DIR, not {' '.join(args.words)!r}")
    name = args.words[0] if len(args.words) == 2 else None
    directory = Path(args.words[-1]).absolute()
    entry = runtime.find(name)
    wishes: dict[str, object] = {"directory": str(directory), "track": args.track}
    if args.base is not None:
        wishes["base"] = str(Path(args.base).absolute())
    try:
        with Client(entry.qmp_socket) as client:
            client.execute("x-minivmm-snapshot", **wishes)
            found = _follow(client, entry.name, quiet=args.quiet or args.json)
    except (KeyboardInterrupt, Interrupted):
        with Client(entry.qmp_socket) as client:  # the other may be waiting for an answer
            client.execute("x-minivmm-cancel-snapshot")
            if _until_over(client)["status"] == "cancelled":
                raise Interrupted(f"no snapshot was taken; {entry.name} runs on") from None
        raise
    if found["status"] != "completed":
        raise Refused(found["error"])
    if args.json:
        print_json({"name": entry.name, "directory": str(directory), **_figures(found)})
    elif not args.quiet:
        say(f"{entry.name} is saved in {args.words[-1]}: {_summary(found)}")
    return ExitStatus.OK


def _follow(client: Client, name: str, *, quiet: bool) -> dict[str, Any]:
    """What came of it; meanwhile, on a terminal, a line says how far it got."""
    shows = not quiet and sys.stderr.isatty()
    while (found := _look(client))["status"] == "active":
        if shows:
            sys.stderr.write(f"\r{name}: {found['written'] // MIB}M written, pass {_pass(found)}  ")
            sys.stderr.flush()
        client.event(POLL)
    if shows:
        sys.stderr.write("\r\x1b[K")
    return found


def _until_over(client: Client) -> dict[str, Any]:
    for _ in range(round(CANCEL / POLL)):
        if (found := _look(client))["status"] != "active":
            break
        client.event(POLL)
    return found


def _look(client: Client) -> dict[str, Any]:
    found: dict[str, Any] = client.execute("x-minivmm-query-snapshot")
    return found


def _pass(found: dict[str, Any]) -> int:
    return int(found["passes"]) + 1


def _figures(found: dict[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in ("plugged", "written", "passes", "pause", "seconds")}


def _summary(found: dict[str, Any]) -> str:
    plugged, written = (format_size(found[key]) for key in ("plugged", "written"))
    return (
        f"{written} written for {plugged} of memory in {found['seconds']:.1f} s;"
        f" the guest stood still for {found['pause'] * 1000:.0f} ms"
    )


def _verify(args: argparse.Namespace) -> int:
    from minivmm.snapshot.restored import verify

    if len(args.words) != 1 or args.base is not None or args.track:
        raise UsageError("snapshot --verify takes one DIR and nothing else")
    wrong = list(verify(Path(args.words[0])))
    if args.json:
        print_json({"directory": str(Path(args.words[0]).absolute()), "damaged": wrong})
    for line in wrong:
        say(line)
    if not wrong and not args.json and not args.quiet:
        say(f"{args.words[0]} is in order")
    return ExitStatus.FAILED if wrong else ExitStatus.OK
