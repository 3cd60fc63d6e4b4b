"""`minivmm ui`: a web page that shows a VM live and steers it, served by this process."""

from __future__ import annotations

import argparse
import time

from minivmm import runtime
from minivmm.cli.text import add_json, add_name, print_json, say
from minivmm.errors import NoSuchMachine
from minivmm.runtime import MachineDir
from minivmm.ui.actions import Actions
from minivmm.ui.feed import Feed
from minivmm.ui.guard import Listen, new_token, parse_listen
from minivmm.ui.server import WebView

CELLS = 1024
"""Most cells of a block map."""

START = 300.0
"""Seconds that a VM which is only starting may take until it answers."""

LAST_WORDS = 0.3
"""Seconds for viewers to be told that the VM has ended."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_name(parser)
    parser.add_argument(
        "--listen",
        metavar="ADDR:PORT",
        default="",
        help="where to listen (default: 127.0.0.1, any free port); whoever has the page's address"
        " can steer the VM, and it is not encrypted: from afar, use `ssh -L`",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="say the page's address only")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C, or until the VM ends."""
    listen = parse_listen(args.listen)
    try:
        entry, feed = _follow(args.name)
        try:
            ended = _serve(entry, feed, listen, args)
        finally:
            feed.close()
    except KeyboardInterrupt:
        return 0
    if not args.quiet:
        say(f"{entry.name}: {ended}")
    return 0


def _serve(entry: MachineDir, feed: Feed, listen: Listen, args: argparse.Namespace) -> str:
    """Serve until the VM ends; returns why."""
    web = WebView(feed, Actions(entry), listen, new_token())
    try:
        say(f"live view of {entry.name}: {web.url}")
        if not listen.loopback and not args.quiet:
            say("the address is reachable from other hosts, unencrypted: keep it to yourself")
        if args.json:
            print_json({"name": entry.name, "url": web.url})
            # Whoever reads this waits for it, while we go on.
            print(end="", flush=True)
        while (state := feed.state).ended is None:
            feed.wait(state.number, 1.0)
        time.sleep(LAST_WORDS)
        return str(state.ended)
    finally:
        web.close()


def _follow(name: str | None) -> tuple[MachineDir, Feed]:
    """The VM called `name`, and its feed; waits for one that is only starting."""
    deadline = time.monotonic() + START
    while True:
        try:
            entry = runtime.find(name)
            return entry, Feed(entry, cells=CELLS)
        except NoSuchMachine:
            if not runtime.starting(name) or time.monotonic() > deadline:
                raise
        time.sleep(0.2)
