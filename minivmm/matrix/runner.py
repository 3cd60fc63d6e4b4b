"""Runs a suite in one column after another: boots, shares guests, watches for leaks, keeps going.

A scenario gets a guest with nothing plugged. It may be one that others have used, if it is made the
same, they passed, and all of their memory could be unplugged.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

from minivmm.errors import Interrupted, MinivmmError
from minivmm.matrix.guest import BLOCK, PLAIN, BootCost, Failed, Guest, HostUse, Setup, Skipped
from minivmm.matrix.leaks import watch
from minivmm.matrix.processes import process_use
from minivmm.matrix.results import Cell, Column, Leaks, Outcome
from minivmm.matrix.scenario import Note, Scenario, set_policy
from minivmm.matrix.suites import Suite

CLEAN_QUIET = 8.0
"""Seconds without a change after which what is still plugged is taken to stay."""

REASON_LENGTH = 300
"""Characters of a reason that are kept."""

NO_DEVICE = replace(PLAIN, device=False)

PACE_STEPS = 200_000
"""Steps of the work that tells the host's pace: 10 ms on a host of 2023, half a second in a lab."""

LOG_LINES, LOG_TIME = 20, 20.0
"""Lines of a failed guest's kernel log that are kept, and seconds that it may take to tell them."""

Boot = Callable[[Setup], Guest]
"""Boots a guest of a column. Raises MinivmmError."""


@dataclass(frozen=True)
class Track:
    """A column to run, and how its guests are booted; `skip` says why it cannot be run."""

    column: Column
    boot: Boot
    skip: str | None = None


class TrackRun:
    """The cells of one track. Close it, whatever happened: it may have a guest."""

    def __init__(self, track: Track, suite: Suite, repeat: int) -> None:
        self._track = track
        self._suite = suite
        self._repeat = repeat
        self._guest: Guest | None = None
        self._setup = PLAIN
        self._unbootable: dict[Setup, str] = {}
        self._booted = False
        self._boots: dict[bool, list[BootCost]] = defaultdict(list)

    def close(self) -> None:
        """End its guest."""
        if self._guest is not None:
            self._guest.close()
            self._guest = None

    def cell(self, scenario: Scenario) -> Cell:
        """Run `scenario`; whatever fails is in the cell."""
        began = time.monotonic()
        paces = [pace()]
        cell = Cell(self._track.column, scenario.name, Outcome.PASSED)
        figures: dict[str, list[float]] = {}

        def note(name: str, value: float | None) -> None:
            if value is not None:
                figures.setdefault(name, []).append(value)

        try:
            if self._track.skip is not None:
                raise Skipped(self._track.skip)
            leaks = self._boot_cost(note) if scenario.measures_boot else self._run(scenario, note)
            why = leaks.why()
            outcome = Outcome.FAILED if why else Outcome.PASSED
            cell = replace(cell, outcome=outcome, reason=why or "", leaks=leaks)
        except Interrupted:
            raise
        except Skipped as error:
            cell = replace(cell, outcome=Outcome.SKIPPED, reason=str(error))
        except Exception as error:  # a scenario of the user's own may raise anything
            cell = replace(
                cell, outcome=Outcome.FAILED, reason=_reason(error), console=self._console(error)
            )
            self.close()
        seconds = time.monotonic() - began
        paces.append(pace())
        return replace(cell, figures=figures, seconds=seconds, pace=statistics.fmean(paces))

    # -- guests ------------------------------------------------------------------------------------

    def _run(self, scenario: Scenario, note: Note) -> Leaks:
        guest = self._guest_of(scenario.setup)
        set_policy(guest, scenario.online)
        notes = [note]

        def work() -> bool:
            chosen = notes.pop() if notes else _forget
            for _ in range(self._repeat):
                if guest.plugged and not self._cleaned(guest):
                    raise Failed(
                        "memory is left from the repetition before: it cannot be unplugged"
                    )
                scenario.run(guest, chosen)
            return self._cleaned(guest)

        leaks = watch(guest.host_use, work)
        if guest.plugged:
            self.close()
        return leaks

    def _guest_of(self, setup: Setup) -> Guest:
        """A guest of `setup` with nothing plugged: the present one, or a new one."""
        if self._guest is not None and self._setup == setup:
            return self._guest
        self.close()
        self._guest, self._setup = self._boot(setup), setup
        # What is made at the first use, such as threads, is no leak of the first scenario.
        self._guest.resize(BLOCK)
        self._guest.resize(0)
        return self._guest

    def _boot(self, setup: Setup) -> Guest:
        """Boot, unless that has failed: a kernel that hangs would cost minutes each time."""
        if setup in self._unbootable:
            raise Failed(f"as before: {self._unbootable[setup]}")
        if self._unbootable and not self._booted:
            raise Failed(f"as before: {next(iter(self._unbootable.values()))}")
        try:
            guest = self._track.boot(setup)
        except Interrupted:
            raise
        except MinivmmError as error:
            self._unbootable[setup] = f"does not boot: {_reason(error)}"
            error.args = (self._unbootable[setup], *error.args[1:])
            raise
        self._booted = True
        guest.amount = self._suite.amount
        if setup in (PLAIN, NO_DEVICE):
            self._boots[setup.device].append(guest.boot)
        return guest

    def _cleaned(self, guest: Guest) -> bool:
        """Whether all could be unplugged; the wish itself ends a driver's wait for better times."""
        return guest.resize(0, quiet=CLEAN_QUIET).done

    def _boot_cost(self, note: Note) -> Leaks:
        """Boot without and with the device; boots of scenarios count as well."""
        self.close()

        def work() -> bool:
            for _ in range(self._repeat):
                for setup in (NO_DEVICE, PLAIN):
                    if len(self._boots[setup.device]) < self._repeat or setup is NO_DEVICE:
                        self._boot(setup).close()
            return True

        leaks = watch(_own_use, work)
        for device, word in ((False, "without"), (True, "with")):
            for cost in self._boots[device]:
                note(f"boot-{word}-seconds", cost.seconds)
                note(f"boot-{word}-exits", cost.exits)
        return leaks

    def _console(self, error: Exception) -> str:
        """What the guest of a failed cell had printed, and what its kernel had to say."""
        told = list(getattr(error, "__notes__", []))
        guest = self._guest
        if guest is not None:
            told.append(guest.console())
            with contextlib.suppress(Exception):  # it may be dead, or stuck
                told.append(guest.run(f"dmesg | tail -n {LOG_LINES}", timeout=LOG_TIME).stdout)
        return "\n".join(filter(None, told))


def pace() -> float:
    """Seconds that a fixed piece of work takes now; columns that ran at another one differ."""
    began, count = time.monotonic(), 0
    while count < PACE_STEPS:
        count += 1
    return time.monotonic() - began


def _own_use() -> HostUse:
    """What this process uses."""
    found = process_use(os.getpid())
    return HostUse(found.fds, found.threads, found.resident, 0)


def _forget(name: str, value: float | None) -> None:
    """A note that nobody wants."""


def _reason(error: Exception) -> str:
    """`error` in one line."""
    text = " ".join(str(error).split())
    if not isinstance(error, MinivmmError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text[:REASON_LENGTH]
