"""`minivmm resize`: sets how much memory a device should have, and may wait for the guest."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from minivmm import runtime
from minivmm.cli.follow import Follower
from minivmm.cli.text import add_json, parse_duration, print_json
from minivmm.control.client import Client
from minivmm.control.targets import pick_device, request_size
from minivmm.errors import UsageError
from minivmm.units import parse_size

DEFAULT_WAIT = "60s"
"""How long a bare --wait waits."""

_NEGATIVE = re.compile(r"-[0-9]\w*")


def prepare(words: Sequence[str]) -> list[str]:
    """The words as argparse understands them: -256M is a size, and --wait takes only `=T`."""
    found: list[str] = []
    for word in words:
        if _NEGATIVE.fullmatch(word):
            word = " " + word  # what has a blank is no option
        elif word == "--wait":
            word = f"--wait={DEFAULT_WAIT}"
        found.append(word)
    return found


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.usage = "minivmm resize [NAME] SIZE [--device ID] [--wait[=T]] [-q] [--json]"
    parser.add_argument(
        "words",
        nargs="+",
        metavar="[NAME] SIZE",
        help="the VM (optional if only one runs), and what it should have: 1G, +256M, -256M",
    )
    parser.add_argument("--device", metavar="ID", help="memory device, if the VM has several")
    parser.add_argument(
        "--wait",
        metavar="T",
        help=f"wait until the guest has done it, at most T (--wait=30s; default {DEFAULT_WAIT})",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Set requested-size; 0 as soon as it is set, or reached with --wait."""
    if len(args.words) > 2:
        raise UsageError(f"resize takes [NAME] SIZE, not {' '.join(args.words)!r}")
    name = args.words[0] if len(args.words) == 2 else None
    wait = None if args.wait is None else parse_duration(args.wait)
    size_text = args.words[-1].strip()
    parse_size(size_text.lstrip("+-"))  # complain about it before looking for a VM
    entry = runtime.find(name)
    with Client(entry.qmp_socket) as client:
        device, target = request_size(client, args.device, size_text, entry.name)
        if wait is not None:
            Follower(client, entry.exec_socket, device, target, quiet=args.quiet).follow(wait)
        if args.json:
            print_json(_result(client, entry.name, device))
    return 0


def _result(client: Client, name: str, identifier: str) -> dict[str, object]:
    device = pick_device(client.execute("query-memory-devices"), identifier, name)
    return {
        "name": name,
        "id": identifier,
        "requested-size": device["requested-size"],
        "size": device["size"],
    }
