"""A fuzz case: a machine and steps as plain data, what running it finds, and its shrinking."""

from __future__ import annotations

import ast
import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from minivmm.testing.fuzz_checks import Checker
from minivmm.testing.fuzz_guest import FuzzGuest
from minivmm.testing.fuzz_steps import Step
from minivmm.testing.fuzz_talk import recover
from minivmm.testing.fuzz_world import Setup, World
from minivmm.testing.moving import move
from minivmm.testing.shrinking import fewer

_HOST = frozenset(
    ("resize", "refuse", "work", "pass_time", "loop", "access", "wish", "follow", "restart")
)
"""Steps that are methods of World."""
_FRAME = re.compile(r'File ".*/minivmm/(\S+)\.py", line \d+, in (\w+)')


@dataclass(frozen=True)
class Case:
    """What to run."""

    setup: Setup
    steps: tuple[Step, ...]

    def to_text(self) -> str:
        """As Python's literals, a line for each step."""
        lines = "".join(f"  {step!r},\n" for step in self.steps)
        return f"({asdict(self.setup)!r},\n [\n{lines} ])\n"

    @staticmethod
    def from_text(text: str) -> Case:
        """What to_text gave. Raises ValueError or SyntaxError for anything else."""
        setup, steps = ast.literal_eval(text)
        return Case(Setup(**setup), tuple(steps))


@dataclass(frozen=True)
class Finding:
    """Step `number` of a case went wrong."""

    number: int
    what: str
    """Tells findings of one cause from those of others: the exception, and where it was raised."""
    text: str
    """The traceback."""


class DeviceBug(Exception):
    """A transport caught an exception of ours; the text is its traceback."""


def run(case: Case, told: Counter[str] | None = None) -> Finding | None:
    """Take all steps, check after each; `told` gets the trace events counted."""
    world = World(case.setup)
    try:
        guests = [FuzzGuest(world, function, n) for n, function in enumerate(world.functions)]
        checker = Checker(world)
        for number, step in enumerate(case.steps):
            try:
                take(world, guests, step)
                checker.check()
            except Exception:
                text = traceback.format_exc()
                return Finding(number, _signature(text), text)
        return None
    finally:
        if told is not None:
            told.update(world.told)
        world.close()


def take(world: World, guests: Sequence[FuzzGuest], step: Step) -> None:
    """Raises whatever went wrong meanwhile."""
    name, *arguments = step
    world.memory.begin()
    world.irq.messages.clear()
    if name == "recover":
        recover(guests, *arguments)
    elif name == "move":
        move(world, guests)
    elif name in _HOST:
        getattr(world, name)(*arguments)
    else:
        who, *others = arguments
        getattr(guests[who % len(guests)], name)(*others)
    if world.bugs:
        raise DeviceBug(world.bugs[0])


def shrink(case: Case, finding: Finding, look: Callable[[Case], Finding | None] = run) -> Case:
    """A small case that finds the same: steps and options are left out while it does (ddmin)."""

    def same(candidate: Case) -> bool:
        found = look(candidate)
        return found is not None and found.what == finding.what

    best = replace(case, steps=case.steps[: finding.number + 1])
    if not same(best):
        return case
    while True:
        before = best
        best = _fewer_steps(best, same)
        best = next((one for one in _simpler(best) if same(one)), best)
        if best == before:
            return best


def _fewer_steps(case: Case, same: Callable[[Case], bool]) -> Case:
    return replace(case, steps=fewer(case.steps, lambda kept: same(replace(case, steps=kept))))


def _simpler(case: Case) -> Iterator[Case]:
    """Each with one option less."""
    setup = case.setup
    for options in _without_one(setup.options):
        yield replace(case, setup=replace(setup, options=options))
    for options in _without_one(setup.special):
        yield replace(case, setup=replace(setup, special=options))
    for options in _without_one(setup.memory):
        yield replace(case, setup=replace(setup, memory=options))


def _without_one(options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return ({key: options[key] for key in options if key != name} for name in options)


def _signature(text: str) -> str:
    """The innermost frame, not of the tests if possible, and the exception without numbers."""
    # An exception that a transport caught is told by a DeviceBug, whose text is its traceback.
    frames = _FRAME.findall(text) or [("fuzzer", "")]
    ours = [frame for frame in frames if not frame[0].startswith("testing/")]
    where = "/".join((ours or frames)[-1])
    lines = [line for line in text.splitlines() if line and not line.startswith(" ")]
    last = next((line for line in reversed(lines) if not line.startswith("Traceback")), "")
    return f"{where}: {re.sub(r'0x[0-9a-f]+|(?<![-A-Z])[0-9]+', 'N', last)[:80]}"
