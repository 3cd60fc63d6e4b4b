"""`minivmm audit`: proves that what is not plugged holds no host memory."""

from __future__ import annotations

import argparse
from typing import Any

from minivmm import runtime
from minivmm.cli.text import add_device_verb, chosen_device, print_json, print_table, say
from minivmm.control.client import Client
from minivmm.errors import ExitStatus
from minivmm.units import format_size


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_device_verb(parser)


def run(args: argparse.Namespace) -> int:
    """Print host memory by state of the blocks; 1 if unplugged ones hold any."""
    entry = runtime.find(args.name)
    with Client(entry.qmp_socket) as client:
        rows: list[dict[str, Any]] = client.execute("x-minivmm-audit", **chosen_device(args))
    if args.json:
        print_json({"name": entry.name, "memory-devices": rows})
    else:
        heading = ("DEVICE", "PLUGGED", "RESIDENT THERE", "RESIDENT ELSEWHERE")
        sizes = ("size", "resident-plugged", "resident-unplugged")
        print_table(
            [heading, *([row["id"], *(format_size(row[key]) for key in sizes)] for row in rows)]
        )
    guilty = [row for row in rows if row["resident-unplugged"]]
    for row in guilty:
        size = format_size(row["resident-unplugged"])
        say(f"{row['id']}: {size} of host memory are not plugged, in {', '.join(row['places'])}")
    return ExitStatus.FAILED if guilty else ExitStatus.OK
