"""States of a machine (QEMU's RunState) that have to do with moving it."""

from __future__ import annotations

from minivmm.errors import Refused

MOVABLE = ("running", "paused")
"""It can be moved."""

ON_THE_WAY = ("inmigrate", "finish-migrate", "postmigrate")
"""What is changed here and now would be lost, or do harm."""


def refuse_unless_movable(state: str) -> None:
    """Raises Refused."""
    if state not in MOVABLE:
        raise Refused(f"the VM is {state}: only one that is {' or '.join(MOVABLE)} can be migrated")


def refuse_on_the_way(state: str) -> None:
    """Raises Refused."""
    if state in ON_THE_WAY:
        raise Refused(f"the VM is moving from one process to another ({state}): ask the other one")
