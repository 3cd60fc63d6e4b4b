"""A trace in memory: its header, and its events by source (docs/trace.md). What they mean is told
elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minivmm.errors import UsageError
from minivmm.tracing import SCHEMA
from minivmm.tracing.reader import read_file

_Wanted = Mapping[str, type | tuple[type, ...]]


@dataclass(frozen=True)
class MemoryDevice:
    """A virtio-mem device as the header has it; sizes and gpas in bytes."""

    id: str
    memaddr: int
    block_size: int
    region_size: int
    node: int
    requested: int
    plugged: int
    ranges: tuple[tuple[int, int], ...]
    """What is plugged when the trace begins: (gpa, size), ascending."""
    complete: bool
    """Are those all of them?"""


@dataclass(frozen=True)
class Story:
    """`events` are as in the file, in its order."""

    header: Mapping[str, Any]
    devices: tuple[MemoryDevice, ...]
    events: tuple[Mapping[str, Any], ...]
    _by_source: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for event in self.events:
            self._by_source.setdefault(event["source"], []).append(event)

    def of(self, source: str) -> list[Mapping[str, Any]]:
        """The events of one source, oldest first."""
        return self._by_source.get(source, [])

    @property
    def name(self) -> str:
        """The VM's name."""
        return str(self.header["name"])

    @property
    def begin(self) -> float:
        """When the trace began, in seconds since the machine began."""
        return float(self.header["t"])

    @property
    def end(self) -> float:
        """When the last event happened, likewise."""
        return max((event["t"] for event in self.events), default=self.begin)

    @property
    def dropped(self) -> int:
        """Events that are missing, as the trace itself says."""
        return sum(event["count"] for event in self.of("trace") if event["name"] == "dropped")

    @property
    def has_requests(self) -> bool:
        """Does it tell the life of each request?"""
        return "requests" in self.header["details"]


def read_story(path: Path) -> Story:
    """The trace in `path`. Raises UsageError for what is not one."""
    recording = read_file(path)
    return story_of(recording.header, recording.events, str(path))


def story_of(header: Any, events: Iterable[Any], name: str) -> Story:
    """The same of a trace that is read already, which errors call `name`. Raises UsageError."""
    header = _checked_header(header, name)
    checked = tuple(_checked_event(event, name) for event in events)
    memory = (one for one in header["devices"] if one.get("type") == "virtio-mem")
    return Story(header, tuple(_memory_device(one, name) for one in memory), checked)


def _checked_header(found: Any, where: str) -> Mapping[str, Any]:
    wanted: _Wanted = {
        "schema": int,
        "name": str,
        "devices": list,
        "t": (int, float),
        "details": list,
    }
    if not _has(found, wanted):
        raise UsageError(f"{where} is no trace: its header lacks what a report needs")
    if found["schema"] > SCHEMA:
        raise UsageError(
            f"{where}: schema {found['schema']} is newer than this minivmm's {SCHEMA}: update it"
        )
    checked: Mapping[str, Any] = found
    return checked


def _checked_event(found: Any, where: str) -> Mapping[str, Any]:
    if not _has(found, {"t": (int, float), "source": str, "name": str}):
        raise UsageError(f"{where}: event {str(found)[:80]} lacks t, source or name")
    checked: Mapping[str, Any] = found
    return checked


def _has(found: Any, wanted: _Wanted) -> bool:
    return isinstance(found, dict) and all(
        isinstance(found.get(key), kind) for key, kind in wanted.items()
    )


def _memory_device(one: Mapping[str, Any], where: str) -> MemoryDevice:
    try:
        return MemoryDevice(
            id=one["id"],
            memaddr=one["memaddr"],
            block_size=one["block-size"],
            region_size=one["region-size"],
            node=one["node"],
            requested=one["state"]["requested-size"],
            plugged=one["state"]["plugged-size"],
            ranges=tuple((gpa, size) for gpa, size in one["plugged"]),
            complete=one["plugged-complete"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{where}: virtio-mem device without {error}: not a trace's") from None
