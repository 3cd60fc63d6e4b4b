"""`minivmm kick`: makes a guest's memory driver look again, instead of waiting up to 5 minutes."""

from __future__ import annotations

import argparse

from minivmm import runtime
from minivmm.cli.text import add_device_verb, chosen_device, print_json, say
from minivmm.control.client import Client
from minivmm.errors import ExitStatus


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_device_verb(parser)


def run(args: argparse.Namespace) -> int:
    """Kick each device, or one; 1 if one of them has no driver that could notice."""
    entry = runtime.find(args.name)
    with Client(entry.qmp_socket) as client:
        kicked = client.execute("x-minivmm-kick", **chosen_device(args))
    if args.json:
        print_json({"name": entry.name, "memory-devices": kicked})
    for device in kicked:
        if not device["sent"]:
            say(f"{device['id']} has no driver to kick: `minivmm why` tells more")
    return ExitStatus.OK if all(device["sent"] for device in kicked) else ExitStatus.FAILED
