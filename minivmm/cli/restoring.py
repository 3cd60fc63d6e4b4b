"""`minivmm boot --restore`: which options go with it, and the snapshot that it names."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from minivmm.errors import UsageError
from minivmm.snapshot.restored import Snapshot, open_snapshot


def snapshot_of(args: argparse.Namespace, options: Iterable[str]) -> Snapshot:
    """The snapshot to go on from.

    `options` are attributes of `args` that say what a machine is. Raises UsageError for those that
    are given: the guest runs already, on the machine that it knows. BadState, HostError.
    """
    given = [name for name in options if name != "name" and getattr(args, name) is not None]
    if given:
        word = given[0].replace("_", "-").removesuffix("-word").removesuffix("s")
        raise UsageError(
            f"--restore brings its own machine: leave out the option for its {word} (what may be"
            " given: --name, and all that is not about the machine)"
        )
    return open_snapshot(Path(args.restore))
