"""`minivmm kernel`: fetches stock kernels into the cache, and lists those there."""

from __future__ import annotations

import argparse

from minivmm.cli.text import add_json, print_json, print_table, say
from minivmm.guest.kernels import Kernel, fetch, fetched

DEFAULT_VERSION = "6.12"
"""Debian kernel series fetched if none is named."""
FETCH = "download a stock Debian kernel and its modules"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    actions = parser.add_subparsers(dest="action", metavar="fetch|list", required=True)
    fetching = actions.add_parser(
        "fetch", help=FETCH, description=f"{FETCH[0].upper()}{FETCH[1:]}."
    )
    fetching.add_argument(
        "version",
        nargs="?",
        default=DEFAULT_VERSION,
        metavar="VERSION",
        help=f"6.12, 6.1, ... (default: {DEFAULT_VERSION})",
    )
    add_json(fetching)
    add_json(actions.add_parser("list", help="show the fetched ones"))


def run(args: argparse.Namespace) -> int:
    """Do the action."""
    fetching = args.action == "fetch"
    kernels = [fetch(args.version, say)] if fetching else fetched()
    if args.json:
        print_json({"kernels": [_to_json(kernel) for kernel in kernels]})
    elif fetching:
        print(kernels[0].release)
    elif kernels:
        rows = [(k.release, str(k.image), str(k.modules or "-")) for k in kernels]
        print_table([("RELEASE", "IMAGE", "MODULES"), *rows])
    return 0


def _to_json(kernel: Kernel) -> dict[str, object]:
    return {
        "release": kernel.release,
        "image": str(kernel.image),
        "modules": None if kernel.modules is None else str(kernel.modules),
    }
