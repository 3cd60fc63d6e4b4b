"""`minivmm info`: one VM's memory as host and guest see it."""

from __future__ import annotations

import argparse
from typing import Any

from minivmm import runtime
from minivmm.cli.text import add_json, add_name, print_json
from minivmm.control.client import Client
from minivmm.units import format_size


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_name(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Ask the VM and print its answer."""
    entry = runtime.find(args.name)
    with Client(entry.qmp_socket) as client:
        info: dict[str, Any] = client.execute("x-minivmm-info")
    info["pid"] = entry.pid()  # the process here; in a lab, the VM itself has another one
    if args.json:
        print_json(info)
    else:
        print("\n".join(lines(info)))
    return 0


def lines(info: dict[str, Any]) -> list[str]:
    """The answer to x-minivmm-info, for people."""
    agent = info["agent"]
    ready = f"ready (Linux {agent['kernel-release']})" if agent["ready"] else "not ready"
    found = [
        f"name:         {info['name']}",
        f"pid:          {info['pid']}",
        f"status:       {info['status']}",
        f"agent:        {ready}",
        f"boot memory:  {format_size(info['base-memory'])}",
        f"memslots:     {info['memslots']}",
    ]
    for device in info["memory-devices"]:
        end = device["memaddr"] + device["max-size"] - 1
        found += [
            f"{device['id']} ({device['type']}):",
            f"  requested:  {format_size(device['requested-size'])}",
            f"  plugged:    {format_size(device['size'])}",
            f"  usable:     {format_size(device['usable-size'])}",
            f"  region:     {format_size(device['max-size'])} at {device['memaddr']:#x}-{end:#x}",
            f"  block:      {format_size(device['block-size'])}",
            f"  node:       {device['node']}",
            f"  resident:   {_resident(device)}",
            f"  intrusions: {device['intrusions']}",
        ]
    return found


def _resident(device: dict[str, Any]) -> str:
    """Host memory of the device; how much of it in huge pages, which guests run faster on."""
    huge = f" ({format_size(device['resident-huge'])} in huge pages)"
    return format_size(device["resident"]) + (huge if device["resident"] else "")
