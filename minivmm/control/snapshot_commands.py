"""QMP commands that take snapshots of the machine; ours, as QEMU's savevm needs a disk for it."""

from __future__ import annotations

from typing import Literal, TypedDict

from minivmm.control.commands import Nothing, command
from minivmm.control.face import Context
from minivmm.errors import Refused
from minivmm.snapshot.desk import Desk
from minivmm.snapshot.taken import Status


class SnapshotInfo(TypedDict, total=False):
    """The last snapshot; sizes in bytes, times in seconds.

    `plugged` is what memory the guest has, `written` what was stored of it, `passes` how often it
    was gone through, `pause` how long the guest stood still.
    """

    status: Status | Literal["none"]
    plugged: int
    written: int
    passes: int
    pause: float
    seconds: float
    error: str


@command("x-minivmm-snapshot")
def snapshot(
    context: Context, directory: str, base: str | None = None, track: bool = False
) -> Nothing:
    """Begin a snapshot into `directory` (absolute, not there yet); docs/snapshot.md."""
    if not directory.startswith("/") or not (base or "/").startswith("/"):
        raise Refused("directories of snapshots must be absolute: they are the VM's to find")
    _desk(context).begin(directory, base, track=track)
    return {}


@command("x-minivmm-query-snapshot")
def query_snapshot(context: Context) -> SnapshotInfo:
    """How the last one is coming along."""
    progress = _desk(context).progress
    if progress is None:
        return {"status": "none"}
    info: SnapshotInfo = {
        "status": progress.status,
        "plugged": progress.plugged,
        "written": progress.written,
        "passes": progress.passes,
        "seconds": progress.seconds,
    }
    if progress.pause is not None:
        info["pause"] = progress.pause
    if progress.error is not None:
        info["error"] = progress.error
    return info


@command("x-minivmm-cancel-snapshot")
def cancel_snapshot(context: Context) -> Nothing:
    """Have the snapshot that is being taken come to nothing."""
    _desk(context).cancel()
    return {}


def _desk(context: Context) -> Desk:
    if context.snapshots is None:
        raise Refused("this machine cannot be saved")
    return context.snapshots()
