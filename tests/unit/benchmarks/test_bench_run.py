"""A run of all benchmarks: what fails is told, what is stored comes back."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path

import pytest

from benchmarks import all as every
from benchmarks import boot, start
from benchmarks.figures import Figure, table
from benchmarks.stored import HOST, LAB, Part, Run, by_place, details, read, write
from minivmm.matrix.host import about_host

FIGURE = Figure("boot", "s", [3.0], [2.0], ratio_at_most=1, detail={"io exits": 7})
RUN = Run(
    "2026-01-02T03:04:05Z",
    120.0,
    {"QEMU": "7.2"},
    {HOST: about_host(), LAB: {**about_host(), "lab": True}},
    (Part(HOST, "cli", 1.5, (Figure("list", "ms", [80.0], at_most=200),)),
     Part(LAB, "boot", 60.0, (FIGURE,)), Part(LAB, "idle", failed="no kernel")),
)  # fmt: skip


def test_a_stored_run_comes_back(tmp_path: Path) -> None:
    write(RUN, tmp_path / "run")

    assert read(tmp_path / "run") == RUN


def test_the_tables_are_by_place_and_tell_what_failed_and_what_is_missed() -> None:
    text = by_place(RUN, table)

    here, _, lab = text.partition("In the lab")
    assert "list" in here and "boot" not in here
    assert "3 s" in lab and "NO" in lab
    assert "idle (lab) failed: no kernel" in lab
    assert "1 of 2 goals are met. The run took 2.0 minutes" in lab


def test_counts_are_listed() -> None:
    assert details(RUN) == "* boot (lab): io exits 7\n"


def test_a_benchmark_that_fails_leaves_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    part = every.run_part(HOST, "nosuch")

    assert "No module named benchmarks.nosuch" in part.failed
    assert part.figures == ()
    assert "bench: nosuch (host) took" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted({*every.ON_HOST, *every.WITH_GUESTS}))
def test_every_benchmark_of_a_run_has_the_shape(name: str) -> None:
    module = importlib.import_module(f"benchmarks.{name}")

    assert inspect.signature(module.measure).parameters["runs"].default > 0


def test_a_boot_ends_with_the_first_line_of_init() -> None:
    script = "import time; print('kernel'); print('minivmm: init', flush=True); time.sleep(60)"

    found = boot.boot([sys.executable, "-c", script])

    assert 0 < found.seconds < 30
    assert sum(found.counters.values()) == 0  # it is no VM


def test_a_vmm_that_ends_early_is_told_with_what_it_said() -> None:
    with pytest.raises(SystemExit, match="did not reach init:\nno kernel"):
        boot.boot(["echo", "no kernel"])


def test_the_first_byte_of_the_guest_stops_the_clock() -> None:
    assert 0 < start.until_hello(["sh", "-c", "printf '\\n!'; sleep 60"]) < 30
    with pytest.raises(SystemExit, match="sh ended with 3"):
        start.until_hello(["sh", "-c", "exit 3"])
