"""`boot --incoming URI`: the option, and what cannot be had together with it."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from minivmm.errors import UsageError

_EXCLUDED = ("gdb", "scenario", "record")
"""Options that would be missing what the guest did before."""


def configure(add: Callable[..., object]) -> None:
    """Add the option."""
    add(
        "--incoming",
        metavar="URI",
        help="go on as a VM that another `minivmm boot` sends (minivmm migrate): unix:PATH,"
        " tcp:HOST:PORT, tls:HOST:PORT,creds=DIR or exec:COMMAND (docs/migration.md)",
    )


def check(args: argparse.Namespace) -> None:
    """Raises UsageError."""
    if args.incoming is None:
        return
    from minivmm.migration.transport import parse_uri

    parse_uri(args.incoming)
    for name in _EXCLUDED:
        if getattr(args, name) is not None:
            raise UsageError(
                f"--{name} and --incoming exclude each other: it would not know what the guest did"
                " before"
            )
    if args.accel == "lab":
        raise UsageError("--incoming and --accel lab exclude each other: no VM can enter a lab")
