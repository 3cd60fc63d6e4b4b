"""The state of a whole machine as sections, taken and loaded; guest memory is not in it (ram.py).

What both sides must have in common before is in description.py; files and streams are others' work.
"""

from __future__ import annotations

from collections.abc import Sequence

from minivmm.errors import BadState
from minivmm.machine import Machine
from minivmm.saved import Section
from minivmm.snapshot.description import describe as describe
from minivmm.snapshot.description import differences as differences

VERSION = 1
"""Of every section's form; when one changes, all of them do."""

_DEVICE = "device."


def save_machine(machine: Machine) -> list[Section]:
    """The state of `machine`, which is quiescent (Machine.quiesce); lock held.

    Nothing of the machine is changed by it, nor of guest memory. Raises HostError for what KVM does
    not tell.
    """
    return [
        Section(name, VERSION, part.save_state()) for name, part in machine.saved_parts().items()
    ]


def save_memory_devices(machine: Machine) -> list[Section]:
    """Only the sections of memory devices, for a target that must know early what is plugged.

    May be taken while the machine runs, lock held.
    """
    return [
        Section(_DEVICE + name, VERSION, device.save_state())
        for name, device in machine.memory_devices.items()
    ]


def load_memory_devices(machine: Machine, sections: Sequence[Section]) -> None:
    """Plug what `sections` (save_memory_devices) say, before guest memory is filled.

    `machine` as for load_machine, which still has to come. Raises BadState.
    """
    names = [_DEVICE + name for name in machine.memory_devices]
    _load(machine, sections, names)


def load_machine(machine: Machine, sections: Sequence[Section]) -> None:
    """Have `machine` go on from `sections` when it is started; lock held.

    It was built of an equal spec (`differences` found none), with `empty=True`, and not started;
    guest memory is filled by others, now or later, but before the start. Raises BadState or
    HostError; the machine is of no use then and must be closed.
    """
    _load(machine, sections, list(machine.saved_parts()))


def _load(machine: Machine, sections: Sequence[Section], names: list[str]) -> None:
    """Load sections named `names`, each there once and in no more than that, in that order."""
    given: dict[str, Section] = {}
    for section in sections:
        if section.name in given:
            raise BadState("machine", "section", section.name, "it is there twice")
        if section.version != VERSION:
            why = f"this minivmm reads version {VERSION}: use the minivmm that saved it"
            raise BadState(section.name, "version", section.version, why)
        given[section.name] = section
    missing = [name for name in names if name not in given]
    if missing:
        raise BadState("machine", "section", missing[0], "it is missing")
    extra = [name for name in given if name not in names]
    if extra:
        raise BadState("machine", "section", extra[0], "this machine has no such part")
    parts = machine.saved_parts()
    for name in names:
        parts[name].load_state(given[name].data)
