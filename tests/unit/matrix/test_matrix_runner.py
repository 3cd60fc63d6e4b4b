"""Cells: guests are shared while they are clean, leaks and dead kernels fail a cell only."""

from __future__ import annotations

import dataclasses

from fake_guest import FakeGuest

from minivmm.errors import GuestFailure
from minivmm.matrix import Guest, Note, Ran, Scenario, Setup, Skipped, scenario
from minivmm.matrix.guest import BLOCK
from minivmm.matrix.results import Column, Outcome
from minivmm.matrix.runner import Track, TrackRun
from minivmm.matrix.scenarios import BOOT
from minivmm.matrix.suites import Suite

COLUMN = Column("6.12", "fake", "packed=on")


@scenario()
def grow(guest: Guest, note: Note) -> None:
    note("grow-seconds", guest.resize(guest.amount).check().seconds)


@scenario()
def shrink(guest: Guest, note: Note) -> None:
    guest.resize(guest.amount)
    guest.resize(0).check()


@scenario(setup=Setup(cpus=2))
def elsewhere(guest: Guest, note: Note) -> None:
    note("cpus-count", guest.setup.cpus)  # type: ignore[attr-defined]


class Bench:
    """A track whose guests are kept."""

    def __init__(self, repeat: int = 1, **options: int) -> None:
        self.made: list[FakeGuest] = []
        self.options = options
        self.fails: set[Setup] = set()
        track = Track(COLUMN, self.boot)
        self.run = TrackRun(track, Suite("s", (), 2 * BLOCK), repeat)

    def boot(self, setup: Setup) -> Guest:
        if setup in self.fails:
            raise GuestFailure("kernel panic\nat once")
        self.made.append(FakeGuest(setup, **self.options))
        return self.made[-1]


def test_clean_guests_are_shared_and_others_are_not() -> None:
    bench = Bench()

    cells = [bench.run.cell(one) for one in (grow, shrink, elsewhere)]

    assert [cell.outcome for cell in cells] == [Outcome.PASSED] * 3
    assert [guest.setup.cpus for guest in bench.made] == [1, 2]
    assert bench.made[0].closed
    assert cells[2].figures == {"cpus-count": [2]}
    bench.run.close()
    assert bench.made[1].closed


def test_memory_that_stays_plugged_costs_the_next_scenario_a_boot() -> None:
    bench = Bench(stuck_at=BLOCK)

    assert bench.run.cell(grow).outcome is Outcome.PASSED
    assert bench.made[0].closed
    assert bench.run.cell(grow).outcome is Outcome.PASSED
    assert len(bench.made) == 2


def test_what_a_scenario_raises_fails_its_cell_with_reason_and_console() -> None:
    bench = Bench(stuck_at=BLOCK)

    cell = bench.run.cell(shrink)

    assert cell.outcome is Outcome.FAILED
    assert cell.reason == "asked to go from 256M to 0, it stayed at 128M"
    assert "the end of the console" in cell.console
    assert bench.made[0].closed

    def broken(guest: Guest, note: Note) -> None:
        raise ZeroDivisionError("oh")

    assert bench.run.cell(Scenario("broken", broken)).reason == "ZeroDivisionError: oh"


def test_repetitions_add_figures_from_a_guest_with_nothing_plugged() -> None:
    bench = Bench(repeat=3)

    assert len(bench.run.cell(grow).figures["grow-seconds"]) == 3
    assert len(bench.made) == 1


def test_leaks_fail_a_cell_and_growth_does_not() -> None:
    bench = Bench()

    def leak(**more: int) -> Scenario:
        def run(guest: Guest, note: Note) -> None:
            use = bench.made[-1].use
            each = {name: getattr(use, name) + value for name, value in more.items()}
            bench.made[-1].use = dataclasses.replace(use, **each)

        return Scenario("leak", run)

    grown = bench.run.cell(leak(resident=49 << 20))
    assert grown.outcome is Outcome.PASSED
    assert grown.leaks is not None
    assert grown.leaks.resident == 49 << 20
    assert bench.run.cell(leak(fds=2)).reason == "2 files left open"
    assert bench.run.cell(leak(threads=1)).reason == "1 threads left"
    held = bench.run.cell(leak(held=4096))
    assert held.outcome is Outcome.FAILED
    assert held.reason == "4096 bytes of host memory behind unplugged memory"


def test_what_is_made_at_its_first_use_is_no_leak() -> None:
    bench = Bench()
    runs = []

    def run(guest: Guest, note: Note) -> None:
        runs.append(guest)
        note("rounds-count", 1)
        bench.made[-1].use = dataclasses.replace(bench.made[-1].use, fds=12, threads=4)

    cell = bench.run.cell(Scenario("first", run))

    assert (cell.outcome, len(runs)) == (Outcome.PASSED, 2)
    assert cell.figures == {"rounds-count": [1]}


def test_a_kernel_that_does_not_boot_fails_its_cells_after_one_try() -> None:
    bench = Bench()
    bench.fails = {Setup()}

    first = bench.run.cell(grow)
    assert (first.outcome, first.reason) == (
        Outcome.FAILED,
        "does not boot: kernel panic at once",
    )
    assert bench.run.cell(elsewhere).reason == "as before: does not boot: kernel panic at once"
    assert bench.run.cell(BOOT).outcome is Outcome.FAILED
    assert bench.made == []


def test_a_setup_that_does_not_boot_spares_the_others() -> None:
    bench = Bench()
    bench.fails = {Setup(cpus=2)}

    outcomes = [bench.run.cell(one).outcome for one in (grow, elsewhere, elsewhere, grow)]

    assert outcomes == [Outcome.PASSED, Outcome.FAILED, Outcome.FAILED, Outcome.PASSED]


def test_boots_are_measured_with_and_without_the_device() -> None:
    bench = Bench(repeat=2)
    bench.run.cell(grow)

    cell = bench.run.cell(BOOT)

    assert len(cell.figures["boot-without-seconds"]) == 2
    assert len(cell.figures["boot-with-seconds"]) == 2
    assert [guest.setup.device for guest in bench.made] == [True, False, True, False]
    assert all(guest.closed for guest in bench.made)


def test_what_cannot_be_run_is_skipped_with_the_reason() -> None:
    bench = Bench()

    def no(guest: Guest, note: Note) -> None:
        raise Skipped("not here")

    cell = bench.run.cell(Scenario("no", no))
    assert (cell.outcome, cell.reason) == (Outcome.SKIPPED, "not here")

    skipped = TrackRun(Track(COLUMN, bench.boot, skip="QEMU has no x"), Suite("s", ()), 1)
    assert skipped.cell(grow).reason == "QEMU has no x"


def test_a_policy_is_set_in_the_guest_or_the_scenario_skipped() -> None:
    bench = Bench()
    zones = Scenario("zones", grow.run, online="auto-movable")
    bench.run.cell(zones)
    assert "echo auto-movable >" in bench.made[0].commands[0]
    assert "echo online >" in bench.made[0].commands[0]

    bench.made[0].answer = lambda command: Ran(3, "")
    assert bench.run.cell(zones).reason == "this kernel has no policy auto-movable"
