"""Suites by name, and scenarios of the user's own, in a Python file."""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass
from importlib import util
from pathlib import Path

from minivmm.errors import UsageError
from minivmm.matrix import scenarios
from minivmm.matrix.guest import BLOCK, REGION
from minivmm.matrix.scenario import POLICIES, Scenario
from minivmm.options import unknown
from minivmm.units import GIB, MIB, format_size, parse_size

MODULE = "minivmm_matrix_suite"
"""Under what name a user's file is imported."""


@dataclass(frozen=True)
class Suite:
    """Scenarios in turn; `amount` is by how many bytes they grow guests."""

    name: str
    scenarios: tuple[Scenario, ...]
    amount: int = GIB


def _named(*names: str) -> tuple[Scenario, ...]:
    return tuple(one for one in scenarios.ALL if one.name in names)


SUITES = {
    "quick": Suite("quick", _named("idle", "fragmentation", "reboot"), 256 * MIB),
    "policies": Suite(
        "policies", _named("fragmentation", "offline", "auto-movable", "online", "online-kernel")
    ),
    "standard": Suite("standard", scenarios.ALL),
}


def find_suite(name: str, amount: str | None = None) -> Suite:
    """The suite `name`, or the scenarios in the Python file of that name. Raises UsageError."""
    if name in SUITES:
        suite = SUITES[name]
    elif name.endswith(".py") or "/" in name:
        suite = _read(Path(name))
    else:
        raise UsageError(f"{unknown('suite', name, list(SUITES))}, or a Python file (x.py)")
    size = suite.amount if amount is None else parse_size(amount)
    if size % (2 * BLOCK) or not 2 * BLOCK <= size <= REGION:
        raise UsageError(
            f"amount {format_size(size)} is not usable: a multiple of"
            f" {format_size(2 * BLOCK)}, at most {format_size(REGION)}"
        )
    return Suite(suite.name, suite.scenarios, size)


def _read(path: Path) -> Suite:
    if not path.is_file():
        raise UsageError(f"suite {path} does not exist")
    spec = util.spec_from_file_location(MODULE, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"suite {path} is no Python file: its name must end in .py")
    module = util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"suite {_place(path, error)}: {type(error).__name__}: {error}") from None
    found = [one for one in vars(module).values() if isinstance(one, Scenario)]
    if not found:
        raise UsageError(f"suite {path} has no scenarios: decorate functions with @scenario()")
    for one in found:
        if one.online not in POLICIES:
            raise UsageError(f"suite {path}: {unknown('policy', one.online, list(POLICIES))}")
    amount = getattr(module, "AMOUNT", GIB)
    return Suite(path.name, tuple(found), parse_size(amount) if isinstance(amount, str) else amount)


def _place(path: Path, error: Exception) -> str:
    """Where in `path` it happened, as FILE:LINE."""
    if isinstance(error, SyntaxError):
        return f"{path}:{error.lineno}"
    frames = traceback.extract_tb(sys.exc_info()[2])
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path]
    return f"{path}:{lines[-1]}" if lines else str(path)
