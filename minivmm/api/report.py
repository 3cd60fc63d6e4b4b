"""What a person wants to see of a machine after a test failed: console, events, diagnoses."""

from __future__ import annotations

from collections.abc import Iterator

from minivmm.api.vm import Vm
from minivmm.errors import MinivmmError
from minivmm.units import format_size

CONSOLE_LINES = 200
EVENTS = 100

PATIENCE = 3.0
"""Seconds that a guest may take to tell what it knows."""


def report(vm: Vm) -> list[tuple[str, str]]:
    """(heading, text) of each part; never raises for the state that `vm` is in."""
    name = vm.name
    lines = vm.console.text.splitlines()
    state = vm.outcome.reason if vm.outcome is not None else vm.state
    return [
        (f"console of {name} ({state})", "\n".join(lines[-CONSOLE_LINES:]) or "nothing"),
        (f"trace of {name}", "\n".join(_events(vm)) or "nothing"),
        (f"memory of {name}", "\n".join(_memory(vm)) or "no memory device"),
    ]


def _events(vm: Vm) -> Iterator[str]:
    began = vm.machine.trace.began
    for event in vm.trace.recent()[-EVENTS:]:
        yield f"{event.time - began:10.6f} {event}"


def _memory(vm: Vm) -> Iterator[str]:
    for device in vm.mem.values():
        yield (
            f"{device.id}: {format_size(device.plugged)} of {format_size(device.requested)} plugged"
        )
        try:
            found = device.why(patience=PATIENCE)
        except MinivmmError as error:
            yield f"  {error}"
            continue
        yield f"  {found.headline}"
        yield from (f"    {line}" for line in found.evidence)
        if found.remedy:
            yield f"  remedy: {found.remedy}"
