"""`minivmm list`: the running VMs."""

from __future__ import annotations

import argparse
from typing import Any

from minivmm import runtime
from minivmm.cli.text import add_json, print_json, print_table
from minivmm.control.client import Client
from minivmm.errors import MinivmmError
from minivmm.units import format_size

ANSWER_TIMEOUT = 2.0
"""Seconds that one VM may take to answer before it is listed without details."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """List them; none is fine."""
    entries = [_describe(entry) for entry in runtime.running()]
    if args.json:
        print_json({"machines": entries})
    elif entries:
        heading = ("NAME", "PID", "STATUS", "BOOT MEMORY", "REQUESTED", "PLUGGED")
        print_table([heading, *(_row(entry) for entry in entries)])
    return 0


def _describe(entry: runtime.MachineDir) -> dict[str, Any]:
    """What is shown of one VM. One that does not answer yet is "starting"."""
    found: dict[str, Any] = {"name": entry.name, "pid": entry.pid(), "status": "starting"}
    try:
        with Client(entry.qmp_socket, timeout=ANSWER_TIMEOUT) as client:
            info = client.execute("x-minivmm-info")
    except MinivmmError:
        return found
    devices = info["memory-devices"]
    return found | {
        "status": info["status"],
        "base-memory": info["base-memory"],
        "requested-size": sum(device["requested-size"] for device in devices),
        "size": sum(device["size"] for device in devices),
    }


def _row(entry: dict[str, Any]) -> list[str]:
    sizes = (entry.get(key) for key in ("base-memory", "requested-size", "size"))
    return [
        entry["name"],
        str(entry["pid"]),
        entry["status"],
        *("-" if size is None else format_size(size) for size in sizes),
    ]
