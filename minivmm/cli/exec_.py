"""`minivmm exec`: a command in a running VM, with its streams and exit status as if it ran here."""

from __future__ import annotations

import argparse
import base64
import sys
import tempfile
from collections.abc import Callable

from minivmm import runtime
from minivmm.cli.text import add_json, add_name, parse_duration, print_json
from minivmm.control import exec_client
from minivmm.errors import UsageError

STDIN, STDOUT, STDERR = 0, 1, 2


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.usage = (
        "minivmm exec [NAME] [--env KEY=VALUE] [--cwd DIR] [--timeout T] [--json] -- CMD..."
    )
    add_name(parser)
    parser.add_argument(
        "--env", metavar="KEY=VALUE", action="append", default=[], help="set a variable"
    )
    add_json(parser)
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

    def execute(stdout: int, stderr: int) -> int:
        return exec_client.run(
            runtime.find(args.name).exec_socket,
            args.command,
            stdin=None if sys.stdin is None else STDIN,
            stdout=stdout,
            stderr=stderr,
            env=env,
            cwd=args.cwd,
            timeout=timeout,
        )

    return _as_json(execute) if args.json else execute(STDOUT, STDERR)


def _as_json(execute: Callable[[int, int], int]) -> int:
    """Run with both outputs caught, and print them and the status as one object."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        status = execute(out.fileno(), err.fileno())
        found: dict[str, object] = {"status": status}
        for name, file in (("stdout", out), ("stderr", err)):
            file.seek(0)
            data = file.read()
            try:
                found[name] = data.decode()
            except UnicodeDecodeError:
                found[f"{name}-base64"] = base64.b64encode(data).decode()
    print_json(found)
    return status
