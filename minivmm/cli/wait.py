"""`minivmm wait`: returns when a VM is where the user wants it: resized, ready, or gone."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable
from typing import Any

from minivmm import runtime
from minivmm.cli.text import add_json, add_name, parse_duration, print_json
from minivmm.cli.why import brief
from minivmm.control.client import Client
from minivmm.control.inside import diagnoses
from minivmm.control.targets import pick_device
from minivmm.errors import NoSuchMachine, WaitTimeout
from minivmm.runtime import MachineDir
from minivmm.units import format_size, parse_size

POLL = 0.25
"""Seconds between looks, unless an event comes earlier."""

PATIENCE = 3.0
"""Seconds that the guest may take to tell what it knows, when the time is over."""

Look = Callable[[Client], str]
"""Empty once it is so; until then what is, in a line."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.usage = (
        "minivmm wait [NAME] [--requested | --plugged SIZE | --ready | --stopped] [--device ID]"
        " [--timeout T] [--json]"
    )
    add_name(parser)
    until = parser.add_mutually_exclusive_group()
    until.add_argument(
        "--requested",
        action="store_true",
        help="until every memory device has plugged what is requested (this is the default)",
    )
    until.add_argument(
        "--plugged", metavar="SIZE", help="until a memory device has exactly SIZE plugged"
    )
    until.add_argument(
        "--ready",
        action="store_true",
        help="until the guest's agent runs commands (exec); also if NAME is about to be booted",
    )
    until.add_argument("--stopped", action="store_true", help="until the VM has ended")
    parser.add_argument("--device", metavar="ID", help="only this memory device")
    parser.add_argument(
        "--timeout", metavar="T", default="60s", help="give up after T, status 4 (default: 60s)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Wait; 0 when it is so, 3 if the VM ends before, 4 when the time is over."""
    deadline = time.monotonic() + parse_duration(args.timeout)
    size = None if args.plugged is None else parse_size(args.plugged)
    entry = _find(args, deadline)
    if entry is None:  # it is not running: stopped
        _report(args, args.name, None)
    elif args.stopped:
        _until_stopped(entry, deadline, args.timeout)
        _report(args, entry.name, None)
    else:
        with Client(entry.qmp_socket) as client:
            _until(_look(args, entry.name, size), client, entry, deadline, args.timeout)
            _report(args, entry.name, client)
    return 0


def _find(args: argparse.Namespace, deadline: float) -> MachineDir | None:
    """The VM; None if it is gone, and should be. Raises NoSuchMachine.

    One that is starting is waited for; with --ready and its name, so is one that is not there yet:
    `boot` may have been started in the same script, a moment ago.
    """
    while True:
        try:
            return runtime.find(args.name)
        except NoSuchMachine:
            named = args.name is not None
            starting = runtime.starting(args.name)
            if named and args.stopped and not starting:
                return None
            if not (starting or (named and args.ready)) or time.monotonic() >= deadline:
                raise
        time.sleep(POLL)


def _until_stopped(entry: MachineDir, deadline: float, timeout: str) -> None:
    with contextlib.suppress(NoSuchMachine), Client(entry.qmp_socket) as client:
        if not client.wait_closed(max(0.0, deadline - time.monotonic())):
            raise WaitTimeout(f"{entry.name} still runs after {timeout}")
    while entry.owned():  # its process says its last words, and frees its memory
        if time.monotonic() >= deadline:
            raise WaitTimeout(f"{entry.name} is still ending after {timeout}")
        time.sleep(POLL / 10)


def _look(args: argparse.Namespace, name: str, size: int | None) -> Look:
    """What to look at, by the options."""
    if args.ready:
        return _ready

    def sizes(client: Client) -> str:
        rows = client.execute("query-memory-devices")
        chosen = [row["data"] for row in rows]
        if size is not None or args.device is not None or not rows:
            chosen = [pick_device(rows, args.device, name)]
        return "; ".join(filter(None, (_difference(device, size) for device in chosen)))

    return sizes


def _ready(client: Client) -> str:
    # Not x-minivmm-info: that looks for host memory, page table by page table.
    ready = client.execute("x-minivmm-view", cells=0)["agent"]["ready"]
    return "" if ready else "the guest's agent is not ready"


def _difference(device: dict[str, Any], size: int | None) -> str:
    target = device["requested-size"] if size is None else size
    if device["size"] == target:
        return ""
    return f"{device['id']} has {format_size(device['size'])} of {format_size(target)}"


def _until(look: Look, client: Client, entry: MachineDir, deadline: float, timeout: str) -> None:
    """Look until it is so. Raises WaitTimeout with what is, and the diagnosis of a resize."""
    while said := look(client):
        left = deadline - time.monotonic()
        if left <= 0:
            raise WaitTimeout(f"{said} after {timeout}{_why(client, entry, said)}")
        client.event(min(POLL, left))


def _why(client: Client, entry: MachineDir, said: str) -> str:
    """The diagnosis of the device that `said` begins with, if it is one."""
    for row in client.execute("query-memory-devices"):
        identifier = row["data"]["id"]
        if said.startswith(f"{identifier} "):
            found = diagnoses(client, entry.exec_socket, identifier, patience=PATIENCE)
            return f": {brief(found[0])}"
    return ""


def _report(args: argparse.Namespace, name: str, client: Client | None) -> None:
    """With --json: where the VM is now; it is gone if there is no `client`."""
    if not args.json:
        return
    found: dict[str, Any] = {"name": name, "status": "stopped"}
    if client is not None:
        rows = (row["data"] for row in client.execute("query-memory-devices"))
        keys = ("id", "requested-size", "size")
        found["status"] = client.execute("query-status")["status"]
        found["memory-devices"] = [{key: row[key] for key in keys} for row in rows]
    print_json(found)
