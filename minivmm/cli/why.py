"""`minivmm why`: why a VM has, or has not, the memory that was asked for, and what helps."""

from __future__ import annotations

import argparse
from typing import Any

from minivmm import runtime
from minivmm.cli.text import add_device, add_json, add_name, print_json
from minivmm.control.client import Client
from minivmm.control.inside import diagnoses

PATIENCE = 10.0
"""Seconds for the guest to tell what it knows; it may be the one that hangs."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_name(parser)
    add_device(parser)
    parser.add_argument(
        "--no-agent", action="store_true", help="do not look inside the guest, judge from outside"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the diagnosis of each device, or of one."""
    entry = runtime.find(args.name)
    with Client(entry.qmp_socket) as client:
        agent = None if args.no_agent else entry.exec_socket
        devices = diagnoses(client, agent, args.device, patience=PATIENCE)
    if args.json:
        print_json({"name": entry.name, "memory-devices": devices})
    elif devices:
        print("\n\n".join("\n".join(lines(device)) for device in devices))
    else:
        print(f"{entry.name} has no memory device: boot it with --mem-device size=4G")
    return 0


def brief(diagnosis: dict[str, Any]) -> str:
    """One line: `not-onlined: the guest ...; in the guest: ...`."""
    sure = "" if diagnosis["certain"] else "probably "
    remedy = f" ({diagnosis['remedy']})" if diagnosis["remedy"] else ""
    return f"{sure}{diagnosis['kind']}: {diagnosis['summary']}{remedy}"


def lines(diagnosis: dict[str, Any]) -> list[str]:
    """The whole diagnosis, for people."""
    sure = "" if diagnosis["certain"] else "probably "
    found = [f"{diagnosis['id']}: {sure}{diagnosis['kind']}", f"  {diagnosis['summary']}"]
    found += [f"    {line}" for line in diagnosis["evidence"]]
    if diagnosis["remedy"]:
        found.append(f"  remedy: {diagnosis['remedy']}")
    return found
