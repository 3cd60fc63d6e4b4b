"""`minivmm boot --restore`: which options go with it, and the machine that it builds."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable
from pathlib import Path

from minivmm.errors import UsageError
from minivmm.machine_spec import MachineSpec
from minivmm.snapshot.restored import open_snapshot


def restored_spec(args: argparse.Namespace, options: Iterable[str]) -> MachineSpec:
    """The machine in the snapshot, under the name that is given here.

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
    spec = open_snapshot(Path(args.restore)).spec
    return dataclasses.replace(spec, name=args.name)
