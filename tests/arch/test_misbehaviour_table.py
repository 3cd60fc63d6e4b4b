"""docs/misbehaviour.md's table is what its generator writes, of all cases and both kernels."""

from __future__ import annotations

import json
import re

from script_modules import load_script

from minivmm.devices.virtio_mem.mischief import scenario

script = load_script("misbehaviour")
FOUND = json.loads(script.FOUND.read_text())
TEXT = script.PAGE.read_text()


def test_the_table_is_what_the_generator_writes() -> None:
    assert script.page(TEXT, FOUND) == TEXT, "run: python scripts/misbehaviour.py table"


def test_every_case_was_run_on_both_kernels() -> None:
    assert "not run" not in script.table(FOUND)


def test_every_action_of_scenarios_is_described() -> None:
    for actions in (scenario._REQUEST, scenario._CONFIG, scenario._INTERRUPT):
        for key in actions:
            assert re.search(rf"`{key}`", TEXT), key
