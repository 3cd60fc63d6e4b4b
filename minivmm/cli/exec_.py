"""`minivmm exec`: a command in a running VM, with its streams and exit status as if it ran here."""

from __future__ import annotations

import argparse
import sys

from minivmm import runtime
from minivmm.cli.text import add_name, parse_duration
from minivmm.control import exec_client
from minivmm.errors import UsageError

STDIN, STDOUT, STDERR = 0, 1, 2


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.usage = "minivmm exec [NAME] [--env KEY=VALUE] [--cwd DIR] [--timeout T] -- CMD..."
    add_name(parser)
    parser.add_argument(
        "--env", metavar="KEY=VALUE", action="append", default=[], help="set a variable"
    )
    parser.add_argument("--cwd", metavar="DIR", help="run it in this directory (default: /)")
    parser.add_argument(
        "--timeout",
        metavar="T",
        default="60s",
        help="how long to wait for a guest that is still booting (default: 60s)",
    )


def run(args: argparse.Namespace) -> int:
    """Run it; the exit status is the command's."""
    if not args.command:
        raise UsageError("exec needs a command: minivmm exec [NAME] -- CMD...")
    env: dict[str, str] = {}
    for pair in args.env:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise UsageError(f"--env {pair!r} is not KEY=VALUE")
        env[key] = value
    timeout = parse_duration(args.timeout)
    return exec_client.run(
        runtime.find(args.name).exec_socket,
        args.command,
        stdin=None if sys.stdin is None else STDIN,
        stdout=STDOUT,
        stderr=STDERR,
        env=env,
        cwd=args.cwd,
        timeout=timeout,
    )
