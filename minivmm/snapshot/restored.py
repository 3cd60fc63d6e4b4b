"""A machine goes on from a snapshot: its memory shows the file, so nothing is read before use.

The `machine` file was checked whole; of the `ram` files only their sizes are, so that a restore
takes no longer for more memory. verify() reads all of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from minivmm.errors import BadState, HostError, UsageError
from minivmm.machine import Machine
from minivmm.machine_spec import MachineSpec, spec_from_json
from minivmm.memory.files import data_runs
from minivmm.memory.guest import GuestMemory
from minivmm.memory.ranges import common
from minivmm.snapshot import ram
from minivmm.snapshot.format import RAM_FILE, Contents, read
from minivmm.snapshot.index import CHUNK, PART, Index, Run, read_index
from minivmm.snapshot.machine import describe, differences, load_machine
from minivmm.snapshot.ram_file import checksum
from minivmm.snapshot.taken import SPEC
from minivmm.units import MIB

_MOST_MAPPED = 16384
"""Runs that are mapped, the largest first; what is beyond that is copied (vm.max_map_count)."""

_STEP = 4 * MIB


@dataclass(frozen=True)
class Snapshot:
    """A snapshot whose `machine` file was read and found in order."""

    path: Path
    contents: Contents
    spec: MachineSpec
    """The machine that was saved, as its user asked for it."""
    index: Index


def open_snapshot(path: Path) -> Snapshot:
    """The snapshot in directory `path`. Raises BadState, HostError."""
    contents = read(path)
    try:
        spec = spec_from_json(json.loads(contents.section(SPEC).data))
    except (ValueError, RecursionError, AttributeError, UsageError) as error:
        raise BadState("snapshot", "section", SPEC, f"it describes no machine ({error})") from error
    if spec.bound_by:
        raise BadState("snapshot", "section", SPEC, spec.bound_by)
    return Snapshot(path, contents, spec, read_index(contents.section(PART).data))


def load(snapshot: Snapshot, machine: Machine) -> None:
    """Have `machine` go on from `snapshot` when it is started; lock held.

    `machine` was built with `empty`, of snapshot.spec or one that differs in what the guest cannot
    see, and not started. Raises BadState or HostError; it is of no use then.
    """
    found = differences(snapshot.contents.description, describe(machine))
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise HostError(f"{snapshot.path} cannot be restored here: {found[0]}{more}")
    sections = [one for one in snapshot.contents.sections if one.name not in (SPEC, PART)]
    load_machine(machine, sections)
    with _files(snapshot.path, snapshot.index) as files:
        _fill(machine.board.memory, snapshot.index, files)


def verify(path: Path) -> Iterator[str]:
    """Compares all of a snapshot, and of those that it leans on, with its checksums.

    Gives a line for every file that is damaged. Raises BadState, HostError for what cannot be read.
    """
    snapshot = open_snapshot(path)
    layers = [path, *(path / layer.path for layer in snapshot.index.layers)]
    with _files(path, snapshot.index) as files:
        for directory, fd in zip(layers, files, strict=True):
            index = read_index(read(directory).section(PART).data)
            wrong = _damaged(fd, index)
            if wrong:
                at = wrong[0] * CHUNK
                yield (
                    f"{directory / RAM_FILE} is damaged in {len(wrong)} of its pieces of 2M, the"
                    f" first at byte {at}: take the snapshot again"
                )


def _fill(memory: GuestMemory, index: Index, files: Sequence[int]) -> None:
    """Every run into its place in `memory`, which is empty."""
    pieces = [(piece.gpa, piece.size) for piece in ram.plugged(memory)]
    for run in index.runs:
        if common([(run.gpa, run.size)], pieces) != [(run.gpa, run.size)]:
            why = f"{run.size} bytes there are not memory of this machine"
            raise BadState(PART, "run", f"{run.gpa:#x}", why)
    largest = sorted(index.runs, key=lambda run: -run.size)
    for number, run in enumerate(largest):
        slot = next(one for one in memory.slots if one.gpa <= run.gpa < one.end)
        fd, offset = files[run.layer], index.offset(run.gpa)
        try:
            if number < _MOST_MAPPED and slot.region.shows_files:
                slot.region.show(fd, offset, run.gpa - slot.gpa, run.size)
            else:
                _copy(memory, run, fd, offset)
        except OSError as error:
            raise HostError(
                f"{slot.name}: {run.size} bytes at {run.gpa:#x} cannot be restored"
                f" ({error.strerror})"
            ) from error


def _copy(memory: GuestMemory, run: Run, fd: int, offset: int) -> None:
    for at in range(0, run.size, _STEP):
        data = os.pread(fd, min(_STEP, run.size - at), offset + at)
        ram.fill(memory, run.gpa + at, data)


@contextmanager
def _files(path: Path, index: Index) -> Iterator[list[int]]:
    """Descriptors of the `ram` file of the snapshot at `path` and of every layer, checked."""
    with ExitStack() as owned:
        files = [_open_ram(path, index.size, owned)]
        for layer in index.layers:
            directory = path / layer.path
            try:
                found = read(directory).id
            except HostError as error:
                raise HostError(f"{path} leans on another snapshot: {error}") from error
            if found != layer.id:
                raise BadState(
                    "snapshot",
                    "base",
                    directory,
                    f"it is not the one that {path} leans on: bring that one back",
                )
            files.append(_open_ram(directory, index.size, owned))
        yield files


def _open_ram(directory: Path, size: int, owned: ExitStack) -> int:
    """A file of another size would let the guest die of SIGBUS where it ends."""
    file = directory / RAM_FILE
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"{file} cannot be read ({error.strerror})") from error
    owned.callback(os.close, fd)
    found = os.fstat(fd).st_size
    if found != size:
        raise BadState(str(file), "length", found, f"it has to be {size}: it has been cut short")
    return fd


def _damaged(fd: int, index: Index) -> list[int]:
    """Numbers of the chunks that are not as they were stored; those without checksum are zeroes."""
    sums = dict(index.checksums)
    zeroes = crc32(bytes(CHUNK))
    chunks = set(sums)
    for offset, length in data_runs(fd, 0, index.size):
        chunks.update(range(offset // CHUNK, -(-(offset + length) // CHUNK)))
    return [chunk for chunk in sorted(chunks) if checksum(fd, chunk) != sums.get(chunk, zeroes)]
