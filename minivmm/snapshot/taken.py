"""Takes a snapshot of a running machine: memory while it runs, the rest while it stands still.

    passes over memory, the guest runs -> stillness: what changed meanwhile, and the machine's state
    -> the guest runs on -> checksums, fsync, rename

Whatever fails or whoever cancels, nothing is left behind and the machine runs on. How it is asked
for, and reported, is snapshot/desk.py's business.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Literal

from minivmm.errors import Refused
from minivmm.machine import Machine
from minivmm.machine_spec import spec_to_json
from minivmm.memory.ranges import Range, common, merged, without
from minivmm.saved import Section
from minivmm.snapshot import ram
from minivmm.snapshot.dirty import DirtyLog
from minivmm.snapshot.format import ID_SIZE, RAM_FILE, pack
from minivmm.snapshot.index import PART, Index, Layer, compose, places_of
from minivmm.snapshot.machine import VERSION, describe, save_machine
from minivmm.snapshot.place import Place
from minivmm.snapshot.ram_file import RamFile
from minivmm.units import MIB, align_down, align_up

SPEC = "spec"
"""Name of the section with what the user asked for, as JSON: it is for building the machine."""

_STEP = MIB
"""Bytes copied at a time, under the lock: a vCPU's exit waits for no more."""

_FEW = 4 * MIB
"""So few bytes are left for the stillness; more are tried in another pass."""

_MOST_PASSES = 8

_MOST_RANGES = 4096
"""Ranges of an increment; more are widened, to 64 KiB each, or 2 MiB."""

_PATIENCE = 0.05
"""Seconds between two looks whether a machine that was told to stand still has ended instead."""


Status = Literal["active", "completed", "failed", "cancelled"]


class Cancelled(Refused):
    """Somebody wants no snapshot any more, or the machine is gone."""


@dataclass
class Progress:
    """How far it got; times in seconds, sizes in bytes."""

    status: Status = "active"
    plugged: int = 0
    """Memory that the guest has, as of the stillness."""
    written: int = 0
    passes: int = 0
    pause: float | None = None
    """How long the guest stood still."""
    seconds: float = 0.0
    error: str | None = None


@dataclass
class Base:
    """The snapshot that the next one may lean on, and what was written since."""

    path: Path
    id: bytes
    index: Index
    log: DirtyLog
    changed: list[Range] = field(default_factory=list)
    """Collected from `log` for a snapshot that came to nothing."""


@dataclass(frozen=True)
class _Moment:
    """What a machine was when it stood still."""

    description: dict[str, object]
    sections: list[Section]
    memory: list[Range]
    changed: list[Range]
    """What was stored of memory only then."""


class Taking:
    """One snapshot of `machine` into `place`, leaning on `base`; `run` is its thread's work."""

    def __init__(self, machine: Machine, place: Place, *, base: Base | None, track: bool) -> None:
        self.progress = Progress()
        self._machine = machine
        self._place = place
        self._base = base
        self._track = track or base is not None
        self._log = DirtyLog() if base is None else base.log
        self._forgotten: list[Range] = [] if base is None else base.changed
        """What of the base is not true any more."""
        self._cancelled = False
        self._began = time.monotonic()

    def cancel(self) -> None:
        """Have `run` raise Cancelled soon, unless the snapshot is complete by then."""
        self._cancelled = True

    def run(self) -> Base | None:
        """Take it. What the next one may lean on, if that was wanted.

        Raises Cancelled, HostError (KVM), OSError (the disk); everything is as before then.
        """
        try:
            index, id = self._take()
        except BaseException:
            self._place.abandon()
            if self._base is not None:
                self._base.changed = self._forgotten
            with self._machine.loop.lock:
                self._end_log(keep=self._base is not None)
            raise
        with self._machine.loop.lock:
            self._end_log(keep=self._track)
        return Base(self._place.path, id, index, self._log) if self._track else None

    def _end_log(self, *, keep: bool) -> None:
        if not keep and not self._machine.closed:
            self._log.end()

    def _take(self) -> tuple[Index, bytes]:
        with self._locked():
            places = places_of(self._machine.board.memory)
        self._file = RamFile(self._place.work / RAM_FILE, places)
        try:
            self._pass(self._first())
            for _ in range(_MOST_PASSES):
                with self._locked():
                    changed = self._collect()
                self._pass(changed)
                if sum(size for _, size in changed) <= _FEW:
                    break
            moment = self._stand_still()
            self._file.end_pass(moment.changed)
            self._file.drop(without(self._file.held, moment.memory))
            self.progress.written = self._file.written
            self.progress.plugged = sum(size for _, size in moment.memory)
            index = self._index(moment.memory)
            index = replace(index, checksums=self._file.checksums(self._check))
        finally:
            self._file.close()
        index_section = Section(PART, VERSION, index.save_state())
        packed = pack(moment.description, [*moment.sections, index_section])
        self._place.finish(packed)
        self.progress.seconds = time.monotonic() - self._began
        return index, packed[-ID_SIZE:]

    # -- memory ----------------------------------------------------------------------------------

    def _first(self) -> list[Range]:
        """What is to be stored at first: all that may hold something, or what changed."""
        memory = self._machine.board.memory
        with self._locked():
            if self._base is not None:
                return self._collect(self._base.changed)
            self._log.begin(self._machine)
            return [
                run
                for piece in ram.plugged(memory)
                for run in ram.populated(memory, piece.gpa, piece.size)
            ]

    def _collect(self, more: Sequence[Range] = ()) -> list[Range]:
        """What changed since the last time, and `more`, of what is memory now."""
        changed = merged([*self._log.collect(), *more])
        if self._base is None:
            return changed
        pieces = self._memory()
        for grain in (64 * 1024, 2 * MIB):
            if len(changed) > _MOST_RANGES:
                changed = common(_widened(changed, grain), pieces)
        self._forgotten = merged([*self._forgotten, *changed])
        return changed

    def _memory(self) -> list[Range]:
        return [(piece.gpa, piece.size) for piece in ram.plugged(self._machine.board.memory)]

    def _pass(self, ranges: Sequence[Range]) -> None:
        """Store what is in `ranges` now; the guest may run."""
        for gpa, size in ranges:
            for at in range(gpa, gpa + size, _STEP):
                with self._locked():
                    copies = self._copies(at, min(_STEP, gpa + size - at))
                for place, data in copies:
                    self._file.store(place, data)
                self.progress.written = self._file.written
        self._file.end_pass(ranges)
        self.progress.passes += 1

    def _copies(self, gpa: int, size: int) -> list[tuple[int, bytes]]:
        """What may be stored of this range, by address; without what is all zeroes. Lock held."""
        memory = self._machine.board.memory
        return [
            (at, ram.copy(memory, at, length))
            for at, length in ram.present(memory, gpa, size)
            if not ram.empty(memory, at, length)
        ]

    # -- the stillness ---------------------------------------------------------------------------

    def _stand_still(self) -> _Moment:
        """The machine as it is at one moment; what changed until then is stored."""
        still = Event()
        began = time.monotonic()
        with self._locked():
            self._machine.quiesce(still.set)
        try:
            while not still.wait(_PATIENCE):
                self._check()
            while True:
                with self._locked():
                    changed = self._collect()
                    if sum(size for _, size in changed) <= _FEW:
                        return self._finish(changed)
                self._pass(changed)
        finally:
            with self._machine.loop.lock:
                if not self._machine.closed:
                    self._machine.unquiesce()
            self.progress.pause = time.monotonic() - began

    def _finish(self, changed: Sequence[Range]) -> _Moment:
        """The last of memory, and the rest. Lock held."""
        machine = self._machine
        description, sections = describe(machine), save_machine(machine)
        # Only now: vCPUs may have finished an instruction for it.
        changed = merged([*changed, *self._collect()])
        for gpa, size in changed:
            for place, data in self._copies(gpa, size):
                self._file.store(place, data)
        spec = Section(SPEC, VERSION, json.dumps(spec_to_json(machine.spec)).encode())
        return _Moment(description, [*sections, spec], self._memory(), changed)

    def _index(self, memory: Sequence[Range]) -> Index:
        own = self._file.runs()
        if self._base is None:
            return replace(self._file.index, runs=compose(own, (), (), memory))
        base = self._base.index
        layers = [Layer(str(self._base.path), self._base.id, base.size)]
        for layer in base.layers:
            layers.append(replace(layer, path=os.path.normpath(self._base.path / layer.path)))
        return replace(
            self._file.index,
            layers=tuple(
                replace(one, path=os.path.relpath(one.path, self._place.path)) for one in layers
            ),
            runs=compose(common(own, self._forgotten), self._forgotten, base.runs, memory),
        )

    # -- whether it is still wanted --------------------------------------------------------------

    def _check(self) -> None:
        machine = self._machine
        if self._cancelled:
            raise Cancelled("the snapshot was cancelled")
        if machine.closed or machine.outcome is not None:
            raise Cancelled("the VM ended before its snapshot was complete")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The machine's lock, if there is any use in going on."""
        with self._machine.loop.lock:
            self._check()
            yield


def _widened(ranges: Sequence[Range], grain: int) -> list[Range]:
    """All `grain`s (bytes, a power of two) that `ranges` touch."""
    wide = ((align_down(at, grain), align_up(at + size, grain)) for at, size in ranges)
    return merged((start, end - start) for start, end in wide)
