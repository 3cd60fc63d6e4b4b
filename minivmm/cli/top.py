"""`minivmm top`: a VM's memory live in the terminal, with keys to steer it."""

from __future__ import annotations

import argparse
import locale
import os
import sys

from minivmm import runtime
from minivmm.cli.text import add_name, say
from minivmm.errors import HostError, UsageError

CELLS = 4096
"""Most cells of a block map: the terminal may be large."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_name(parser)
    parser.add_argument(
        "--no-color", action="store_true", help="no colours (as with NO_COLOR in the environment)"
    )


def run(args: argparse.Namespace) -> int:
    """Show the VM until it ends or the user has seen enough."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM") == "dumb":
        raise UsageError("top needs a terminal: `minivmm info --json` tells programs")
    if args.no_color:
        os.environ["NO_COLOR"] = "1"
    entry = runtime.find(args.name)
    try:
        from minivmm.ui.top import Top
    except ModuleNotFoundError as error:
        raise HostError(
            f"top needs the Python package {str(error.name).partition('.')[0]}:"
            " pip install 'minivmm[tui]', or use `minivmm ui`"
        ) from None
    from minivmm.ui.actions import Actions
    from minivmm.ui.condensed import ASCII, GLYPHS
    from minivmm.ui.feed import Feed

    utf8 = locale.getpreferredencoding().replace("-", "").lower() == "utf8"
    feed = Feed(entry, cells=CELLS)
    try:
        ended = Top(feed, Actions(entry), glyphs=GLYPHS if utf8 else ASCII).run(mouse=False)
    finally:
        feed.close()
    if ended is not None:
        say(f"{entry.name}: {ended}")
    return 0
