"""docs/matrix.md: its tables are of the run that is stored, its scenarios those that there are."""

from __future__ import annotations

import re
from pathlib import Path

from script_modules import load_script

from minivmm.matrix import Guest, Scenario
from minivmm.matrix.results import read
from minivmm.matrix.scenarios import ALL
from minivmm.matrix.suites import SUITES, find_suite

script = load_script("matrix")
TEXT = script.PAGE.read_text()


def test_the_tables_are_what_the_generator_writes() -> None:
    assert script.page(TEXT) == TEXT, "run: python scripts/matrix.py"


def test_the_stored_run_is_whole_over_both_kernels_and_qemu() -> None:
    results = read(script.FOUND)
    assert not results.interrupted
    columns = {(cell.column.kernel, cell.column.vmm) for cell in results.cells}
    assert columns == {(k, vmm) for k in ("6.1", "6.12") for vmm in ("minivmm", "qemu")}
    assert {cell.scenario for cell in results.cells} == {one.name for one in ALL}
    assert [c for c in results.failed if c.column.vmm == "minivmm"] == []


def test_every_scenario_and_suite_is_described() -> None:
    table = TEXT[TEXT.index("| scenario |") : TEXT.index("Suites:")]
    for one in ALL:
        assert f"`{one.name}`" in table
    for name in SUITES:
        assert f"`{name}`" in TEXT


def test_the_example_is_a_suite_and_uses_what_guests_have(tmp_path: Path) -> None:
    example = TEXT[TEXT.index("# mine.py") :].partition("```")[0]
    path = tmp_path / "mine.py"
    path.write_text(example)

    suite = find_suite(str(path))

    assert [one.name for one in suite.scenarios] == ["idle", "in-halves"]
    assert all(isinstance(one, Scenario) for one in suite.scenarios)
    for name in re.findall(r"guest\.([a-z_]+)", example):
        assert hasattr(Guest, name), name
