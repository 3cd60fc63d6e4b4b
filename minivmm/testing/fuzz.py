"""scripts/fuzz: random requests, rings and register accesses against every device, by seed.

    scripts/fuzz --iterations 1000000 --seed 7 --format both
    scripts/fuzz --seed 7 --case 123          # that case alone
    scripts/fuzz --replay FILE                # what an earlier run printed

A case is a machine and some 150 steps; each step is an iteration. The first thing that goes wrong
is shrunk and printed; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import faulthandler
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType

from minivmm.testing import fuzz_setups, fuzz_steps
from minivmm.testing.fuzz_case import Case, Finding, run, shrink
from minivmm.testing.fuzz_world import DEVICES

STEPS = 150
"""Steps of a case."""
FORMATS = {"split": (False,), "packed": (True,), "both": (False, True)}
HANGS = 60
"""Seconds after which a case, which takes a hundredth, is said to hang."""
_HANG = "the case hangs"
_REPORTS = 10.0
"""Seconds between two lines on progress."""


def make_case(seed: int, number: int, formats: Sequence[bool] = (False, True)) -> Case:
    """Case `number` of `seed`: devices take turns, and so do ring formats (packed or not)."""
    rng = Random(f"{seed}/{number}")
    device = DEVICES[number % len(DEVICES)]
    packed = formats[number // len(DEVICES) % len(formats)]
    setup = fuzz_setups.setup(rng, device, packed=packed)
    return Case(setup, tuple(fuzz_steps.steps(rng, setup, STEPS)))


@dataclass
class Campaign:
    """Cases of a seed, one after the other."""

    seed: int
    formats: Sequence[bool]
    steps: int = 0
    """Taken so far."""
    told: Counter[str] = field(default_factory=Counter)
    """How often devices traced what."""
    try_out: Callable[[Case, Counter[str]], Finding | None] = run

    def cases(self, iterations: int, first: int = 0) -> Iterator[tuple[int, Case, Finding | None]]:
        """Number, case and what it found, until `iterations` steps were taken."""
        number = first
        while self.steps < iterations:
            case = make_case(self.seed, number, self.formats)
            finding = self.try_out(case, self.told)
            self.steps += len(case.steps) if finding is None else finding.number + 1
            yield number, case, finding
            number += 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as the arguments say; 1 if anything was found, 2 for bad arguments."""
    chosen = _parse(arguments)
    if chosen.replay:
        return _replay(chosen.replay)
    campaign = Campaign(chosen.seed, FORMATS[chosen.format], try_out=_bounded)
    found: dict[str, int] = {}
    began = reported = time.monotonic()
    iterations, first = (1, chosen.case) if chosen.case is not None else (chosen.iterations, 0)
    for number, case, finding in campaign.cases(iterations, first):
        if finding is not None and finding.what not in found:
            found[finding.what] = number
            _report(chosen, number, case, finding)
            if not chosen.keep_going:
                break
        if time.monotonic() - reported > _REPORTS:
            reported = time.monotonic()
            _say(f"{campaign.steps} of {iterations} steps, {_rate(campaign, began)}")
    _say(
        f"seed {chosen.seed}, format {chosen.format}: {campaign.steps} steps,"
        f" {_rate(campaign, began)}, {len(found)} findings"
    )
    if chosen.verbose:
        for name, count in campaign.told.most_common():
            _say(f"{count:>10} {name}")
    return 1 if found else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--iterations", type=int, default=10_000, metavar="N", help="steps to take")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="what is tried (0)")
    parser.add_argument("--format", choices=FORMATS, default="both", help="of the rings (both)")
    parser.add_argument("--case", type=int, metavar="N", help="run only this case of the seed")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run the case in this file")
    parser.add_argument("--keep-going", action="store_true", help="report other findings as well")
    parser.add_argument("--verbose", action="store_true", help="count what devices traced")
    return parser.parse_args(arguments)


def _replay(path: Path) -> int:
    try:
        case = Case.from_text(path.read_text())
    except (OSError, ValueError, SyntaxError, TypeError) as error:
        _say(f"cannot replay {path}: {error}: give a file with what a run printed")
        return 2
    finding = _bounded(case)
    _say("nothing found" if finding is None else f"step {finding.number}\n{finding.text}")
    return 1 if finding else 0


def _report(chosen: argparse.Namespace, number: int, case: Case, finding: Finding) -> None:
    """What was found, how to see it again, and its core."""
    _say(f"seed {chosen.seed}, case {number}, step {finding.number}: {finding.what}")
    print(finding.text)
    again = f"--seed {chosen.seed} --format {chosen.format} --case {number}"
    _say(f"again: scripts/fuzz {again}")
    if _HANG in finding.what:  # every attempt to shrink it would take as long
        core = Case(case.setup, case.steps[: finding.number + 1])
    else:
        core = shrink(case, finding)
    _say(f"{len(core.steps)} of {len(case.steps)} steps are enough (for --replay):")
    print(core.to_text(), flush=True)


def _rate(campaign: Campaign, began: float) -> str:
    return f"{campaign.steps / max(time.monotonic() - began, 1e-9):.0f} a second"


def _say(line: str) -> None:
    print(f"fuzz: {line}", flush=True)


def _bounded(case: Case, told: Counter[str] | None = None) -> Finding | None:
    """As run(); a case that hangs is a finding, too."""
    handler = signal.signal(signal.SIGALRM, _give_up)
    others = signal.setitimer(signal.ITIMER_REAL, HANGS)
    try:
        return run(case, told)
    finally:
        signal.setitimer(signal.ITIMER_REAL, *others)
        signal.signal(signal.SIGALRM, handler)


def _give_up(_signal: int, _frame: FrameType | None) -> None:
    raise TimeoutError(_HANG)


if __name__ == "__main__":
    faulthandler.enable()
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
