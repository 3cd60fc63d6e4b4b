"""A fuzzed machine goes on in another process, as after a snapshot or a migration; drivers cannot
tell. Nothing of the old one is left but bytes: sections of saved state, and guest memory.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from minivmm.saved import Saved
from minivmm.testing.fuzz_guest import FuzzGuest
from minivmm.testing.fuzz_host import require
from minivmm.testing.fuzz_world import World

Sections = dict[str, bytes]

LOST = frozenset(("intrusions", "throttled"))
"""Of inspect(): accesses long ago, and what a port's owner wanted, who is gone."""


def parts(world: World) -> dict[str, Saved]:
    """All that has a state, in the order to load it: devices, then functions."""
    found: dict[str, Saved] = {f.device.identifier: f.device for f in world.functions}
    found["pci"] = world.pci
    return found | {function.address: function for function in world.pci.functions}


def still(world: World) -> None:
    """Nothing is under way, and nothing begins."""
    for function in world.functions:
        function.transport.hold(True)
    while sum(errands.work_off() for errands in world.errands):
        pass


def save(world: World, now: float) -> Sections:
    """The state of a machine that stands still; `now` is what its clocks show."""
    world.mem.activity.clock = lambda: now
    return {name: part.save_state() for name, part in parts(world).items()}


def load(world: World, sections: Sections, now: float) -> None:
    """Load it into a machine that was just built. Raises BadState."""
    world.mem.activity.clock = lambda: now
    for name, part in parts(world).items():
        part.load_state(sections[name])


def go_on(world: World) -> None:
    """The guest runs again."""
    world.mem.activity.clock = time.monotonic
    for function in world.functions:
        function.transport.hold(False)


def memory_of(world: World) -> dict[int, bytes]:
    """All that is plugged, by address; the rest reads as zeroes, or not at all."""
    found: dict[int, bytes] = {}
    for slot in world.memory.slots:
        ranges = [(0, slot.region.size)]
        if slot.occupancy is not None:
            ranges = list(slot.occupancy.plugged_ranges(0, slot.region.size))
        for offset, length in ranges:
            found[slot.gpa + offset] = bytes(slot.region.peek(offset, length))
    return found


def fill(world: World, memory: dict[int, bytes]) -> None:
    """Put there what memory_of found."""
    for slot in world.memory.slots:
        for gpa, data in memory.items():
            if slot.gpa <= gpa < slot.end:
                slot.region.view(gpa - slot.gpa, len(data))[:] = data


def look(world: World) -> object:
    """What there is to be seen of all functions, but for what ends with a process."""
    return _without(LOST, {f.address: f.inspect() for f in world.functions})


def _without(names: frozenset[str], tree: object) -> object:
    if not isinstance(tree, dict):
        return tree
    return {key: _without(names, below) for key, below in tree.items() if key not in names}


def move(world: World, guests: Sequence[FuzzGuest]) -> None:
    """`world` becomes another machine of the same setup, in which `guests` go on.

    Raises Violation if the new one saves itself differently.
    """
    now = time.monotonic()
    still(world)
    sections, memory, sight = save(world, now), memory_of(world), look(world)
    world.close()
    new = World(world.setup, moved=True)
    try:
        load(new, sections, now)
        again = save(new, now)
        different = [name for name, data in sections.items() if again[name] != data]
        require(not different, "moved", f"{different} are not what they were")
        require(look(new) == sight, "moved", f"{look(new)} is not {sight}")
        fill(new, memory)
    except BaseException:
        new.close()
        raise
    new.told.update(world.told)
    new.bugs += world.bugs
    vars(world).update(vars(new))
    for guest, function in zip(guests, world.functions, strict=True):
        guest.move(function)
    go_on(world)
