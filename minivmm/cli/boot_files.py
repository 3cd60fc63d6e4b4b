"""Files of `minivmm boot`: snapshots it goes on from, traces it writes, rules it is under."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minivmm.cli.text import say

if TYPE_CHECKING:
    from minivmm.cli.boot import BootOptions
    from minivmm.machine import Machine
    from minivmm.machine_spec import MachineSpec
    from minivmm.tracing.file import TraceFile


def configure(add: Callable[..., Any], details: str) -> None:
    """Options of the verb; `details` is the default of --trace-details."""
    add(
        "--restore",
        metavar="DIR",
        help="go on from what `minivmm snapshot` saved; the machine is that one (docs/snapshot.md)",
    )
    add("--trace", metavar="FILE", help="write what happens to FILE, as JSON Lines (docs/trace.md)")
    add(
        "--trace-details",
        metavar="LIST",
        default=details,
        help="what else to write there: requests,exits,memory (default: requests)",
    )
    add(
        "--record",
        metavar="FILE",
        help="write what memory devices are asked, and say, for `minivmm replay` (docs/replay.md)",
    )
    add(
        "--scenario",
        metavar="FILE",
        help="have memory devices misbehave by the rules in FILE, JSON or TOML"
        " (docs/misbehaviour.md)",
    )


def open_traces(spec: MachineSpec, options: BootOptions) -> list[TraceFile]:
    """The files of --trace and --record, open and empty. Raises HostError."""
    if options.trace is None and options.record is None:
        return []
    from minivmm.testing.recording import record_filter
    from minivmm.tracing.file import TraceFile
    from minivmm.tracing.wish import parse_details

    files = []
    if options.trace is not None:
        files.append(TraceFile(options.trace, say, details=parse_details(options.trace_details)))
    if options.record is not None:
        patterns = record_filter(device.id for device in spec.memory_devices)
        files.append(TraceFile(options.record, say, patterns=patterns, option="--record"))
    return files


@contextmanager
def misbehaving(path: Path | None, machine: Machine) -> Iterator[None]:
    """The rules in `path` are in force inside; at the end it is said which never acted.

    Raises UsageError for what is wrong with them.
    """
    if path is None:
        yield
        return
    from minivmm.devices.virtio_mem.mischief import read_scenario

    scenario = read_scenario(path)
    with machine.loop.lock:
        scenario.install(machine.memory_devices)
    try:
        yield
    finally:
        for line in scenario.idle():
            say(line)
