"""docs/misbehaviour.md's table is what its generator writes, of all cases and both kernels."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

from minivmm.devices.virtio_mem.mischief import scenario

ROOT = Path(__file__).parents[2]


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


script = load("misbehaviour_script", ROOT / "scripts" / "misbehaviour.py")
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
