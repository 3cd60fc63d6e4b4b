"""`minivmm migrate`: moves a running VM to where `minivmm boot --incoming` waits for it."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any

from minivmm import runtime
from minivmm.cli.text import add_json, parse_duration, print_json, say
from minivmm.control.client import Client
from minivmm.errors import Interrupted, MigrationError, NoSuchMachine, UsageError
from minivmm.units import MIB, format_size, parse_size

POLL = 0.2
"""Seconds between looks at how far it is."""

QUIT_TIMEOUT = 10.0
"""Seconds that the source may take to end when the VM has left it."""

BAR = 12
"""Characters of the progress bar."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.usage = "minivmm migrate [NAME] URI [options]"
    parser.add_argument(
        "words",
        nargs="+",
        metavar="[NAME] URI",
        help="the VM (optional if only one runs), and where it is waited for: unix:PATH,"
        " tcp:HOST:PORT, tls:HOST:PORT,creds=DIR or exec:COMMAND",
    )
    parser.add_argument(
        "--bandwidth", metavar="SIZE", help="send at most SIZE a second, 0: no limit (default 128M)"
    )
    parser.add_argument(
        "--downtime", metavar="T", help="how long the guest may stand still (default 300ms)"
    )
    parser.add_argument(
        "--compress", metavar="LEVEL", type=int, help="compress memory, 1 to 9 (default 0: do not)"
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave the VM here as it was, paused, once it has moved"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Move it; 0 once it runs there. Ctrl-C cancels, and it runs on here."""
    if len(args.words) > 2:
        raise UsageError(f"migrate takes [NAME] URI, not {' '.join(args.words)!r}")
    limits = _limits(args)
    entry = runtime.find(args.words[0] if len(args.words) == 2 else None)
    with Client(entry.qmp_socket) as client:
        if limits:
            client.request("migrate-set-parameters", limits)
        client.execute("migrate", uri=args.words[-1])
        found = _follow(client, quiet=args.quiet)
        if found["status"] != "completed":
            raise MigrationError(found.get("error-desc", "the migration ended for no known reason"))
        if not args.keep:
            with contextlib.suppress(NoSuchMachine):
                client.execute("quit")
            client.wait_closed(QUIT_TIMEOUT)
    if args.json:
        print_json({"name": entry.name, **found})
    elif not args.quiet:
        say(_summary(entry.name, found))
    return 0


def _limits(args: argparse.Namespace) -> dict[str, object]:
    """What migrate-set-parameters takes. Raises UsageError."""
    limits: dict[str, object] = {}
    if args.bandwidth is not None:
        limits["max-bandwidth"] = parse_size(args.bandwidth)
    if args.downtime is not None:
        limits["downtime-limit"] = round(parse_duration(args.downtime) * 1000)
    if args.compress is not None:
        if not 0 <= args.compress <= 9:
            raise UsageError(f"--compress {args.compress} is no level: 0 to 9 are")
        limits["compress-level"] = args.compress
    return limits


def _follow(client: Client, *, quiet: bool) -> dict[str, Any]:
    """What query-migrate says when it is over. Raises Interrupted after Ctrl-C."""
    shown = not quiet and sys.stderr.isatty()
    try:
        while True:
            found: dict[str, Any] = client.execute("query-migrate")
            if found["status"] in ("completed", "failed", "cancelled"):
                return found
            if shown:
                sys.stderr.write(f"\r{_line(found):<72}")
                sys.stderr.flush()
            client.event(POLL)
    except (KeyboardInterrupt, Interrupted):
        client.execute("migrate_cancel")
        raise Interrupted("the migration is cancelled: the VM runs on here") from None
    finally:
        if shown:
            sys.stderr.write("\n")


def _line(found: dict[str, Any]) -> str:
    """`round 2  ########----  12M left  88 MB/s`."""
    ram = found["ram"]
    total, left = ram["total"], ram["remaining"]
    done = BAR * (total - left) // total if total else 0
    speed = ram["transferred"] / max(found["total-time"], 1) / 1e3
    shown = format_size(left - left % MIB if left > MIB else left)
    return (
        f"round {ram['dirty-sync-count']}  {'#' * done:-<{BAR}}  {shown} left  {speed:.0f} MB/s"
        f"  {found['status']}"
    )


def _summary(name: str, found: dict[str, Any]) -> str:
    ram = found["ram"]
    return (
        f"{name} has moved in {found['total-time'] / 1000:.1f} s: stood still for"
        f" {found.get('downtime', 0)} ms, {ram['transferred'] / 1e6:.0f} MB sent in"
        f" {ram['dirty-sync-count']} rounds for {format_size(ram['total'])} of memory"
    )
