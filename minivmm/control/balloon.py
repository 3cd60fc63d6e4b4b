"""QMP commands about the memory balloon: `balloon` and `query-balloon`, as QEMU has them.

Sizes there are those of boot memory less the balloon; what virtio-mem devices have plugged counts
on neither side, so it can change without moving the balloon (QEMU does the same).
"""

from __future__ import annotations

from typing import TypedDict

from minivmm.control.commands import Nothing, command
from minivmm.control.face import Context
from minivmm.devices.virtio_balloon.device import VirtioBalloon
from minivmm.errors import Refused


class BalloonInfo(TypedDict):
    """BalloonInfo: bytes that the guest has left."""

    actual: int


@command("balloon")
def set_balloon(context: Context, value: int) -> Nothing:
    """Ask the guest to leave itself `value` bytes of its boot memory; more means all of it."""
    balloon = _balloon(context)
    if value <= 0:
        raise Refused("Parameter 'target' expects a size")
    balloon.set_target(max(0, context.machine.boot_memory - value))
    return {}


@command("query-balloon")
def query_balloon(context: Context) -> BalloonInfo:
    """How far the balloon leaves the guest its boot memory."""
    return {"actual": context.machine.boot_memory - _balloon(context).size}


def _balloon(context: Context) -> VirtioBalloon:
    balloon = context.machine.balloon
    if balloon is None:
        raise Refused("No balloon device has been activated", "DeviceNotActive")
    return balloon
