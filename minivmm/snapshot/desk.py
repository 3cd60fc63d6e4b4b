"""Where a running machine is asked for snapshots, one at a time, and how they are coming along."""

from __future__ import annotations

import errno
from pathlib import Path

from minivmm.errors import MinivmmError, Refused
from minivmm.machine import Machine
from minivmm.snapshot.format import read
from minivmm.snapshot.index import MOST_LAYERS
from minivmm.snapshot.place import Place
from minivmm.snapshot.taken import Base, Cancelled, Progress, Taking

EVENT = "X_MINIVMM_SNAPSHOT"
"""Emitted when a snapshot begins and when it has ended, with what `progress` is."""


class Desk:
    """One machine's. Methods want the machine's lock held."""

    def __init__(self, machine: Machine) -> None:
        self.progress: Progress | None = None
        """Of the last snapshot that was asked for."""
        self._machine = machine
        self._taking: Taking | None = None
        self._base: Base | None = None

    def begin(self, directory: str, base: str | None = None, *, track: bool = False) -> None:
        """Begin to take a snapshot into `directory`, which must not exist.

        With `base`, the directory of the snapshot taken last, only what changed since is stored.
        With `track` the next one may be based on this one; what is written is logged from then on,
        and so it is after one with a base. Raises Refused, UsageError, HostError.
        """
        if self._taking is not None:
            raise Refused("a snapshot is being taken: wait for its end, or cancel it")
        machine = self._machine
        if machine.state not in ("running", "paused"):
            raise Refused(f"the VM is {machine.state}: only a running or paused one can be saved")
        if machine.spec.bound_by:
            raise Refused(machine.spec.bound_by)
        known = None if base is None else self._known(Path(base))
        taking = Taking(machine, Place(Path(directory)), base=known, track=track)
        self._taking, self.progress = taking, taking.progress
        self._tell()
        found: list[Base | None] = []
        job = machine.jobs.aside(
            lambda: found.append(taking.run()), lambda: self._ended(taking, found, job.error)
        )

    def cancel(self) -> None:
        """Have the snapshot that is being taken come to nothing. Harmless if there is none."""
        if self._taking is not None:
            self._taking.cancel()

    def _known(self, path: Path) -> Base:
        """What is known of the snapshot at `path`. Raises Refused if it is not the last one."""
        base = self._base
        if base is None:
            raise Refused(
                f"base {path}: nothing was kept of what was written since: take a whole snapshot"
                " with --track first"
            )
        if read(path).id != base.id:
            raise Refused(f"base {path}: it is not the last one, which was {base.path}: use that")
        if len(base.index.layers) + 2 > MOST_LAYERS:
            raise Refused(
                f"base {path}: {MOST_LAYERS} snapshots lean on each other already: take a whole one"
                " with --track"
            )
        base.path = path.absolute()  # it may have been moved
        return base

    def _ended(self, taking: Taking, found: list[Base | None], error: BaseException | None) -> None:
        self._taking = None
        progress = taking.progress
        if error is None:
            progress.status = "completed"
            if found[0] is not None:
                if self._base is not None and self._base.log is not found[0].log:
                    self._base.log.end()
                self._base = found[0]
        else:
            progress.status = "cancelled" if isinstance(error, Cancelled) else "failed"
            progress.error = _line(error)
        self._tell()
        if error is not None and not isinstance(error, MinivmmError | OSError):
            raise error  # a bug of ours

    def _tell(self) -> None:
        assert self.progress is not None
        data: dict[str, object] = {"status": self.progress.status}
        if self.progress.error is not None:
            data["error"] = self.progress.error
        for listener in tuple(self._machine.on_event):
            listener(EVENT, data)


def _line(error: BaseException) -> str:
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return (
                f"there is no room for the snapshot ({error.strerror}): free some space, or give a"
                " directory elsewhere"
            )
        return f"the snapshot cannot be written: {error.strerror or error}"
    return str(error)
