"""`minivmm stop`: ends a VM, asking its guest first."""

from __future__ import annotations

import argparse
import contextlib

from minivmm import runtime
from minivmm.cli.text import add_json, add_name, parse_duration, print_json, say
from minivmm.control.client import Client
from minivmm.errors import HostError, NoSuchMachine

QUIT_TIMEOUT = 10.0
"""Seconds that the VM may take to end after `quit`."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_name(parser)
    parser.add_argument("--force", action="store_true", help="end it at once, unasked")
    parser.add_argument(
        "--grace",
        metavar="T",
        default="10s",
        help="how long the guest may take to power off before it is ended (default: 10s)",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Power button, a grace period, then quit."""
    grace = parse_duration(args.grace)
    entry = runtime.find(args.name)
    with Client(entry.qmp_socket) as client:
        powered_off = not args.force and _power_down(client, grace)
        if not powered_off:
            if not args.force:
                say(f"{entry.name} did not power off within {grace:g} s: ending it")
            _quit(client, entry.name)
    if args.json:
        print_json({"name": entry.name, "powered-off": powered_off})
    return 0


def _power_down(client: Client, grace: float) -> bool:
    """True if the guest powers itself off within `grace` seconds."""
    try:
        client.execute("system_powerdown")
    except NoSuchMachine:
        return True
    return client.wait_closed(grace)


def _quit(client: Client, name: str) -> None:
    with contextlib.suppress(NoSuchMachine):  # it ended, as wished, before it could answer
        client.execute("quit")
    if not client.wait_closed(QUIT_TIMEOUT):
        raise HostError(f"{name} does not end: kill its process (`minivmm list` shows the pid)")
