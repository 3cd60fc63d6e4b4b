"""The whole session once more in the lab, where /dev/kvm can run guests; its status is ours."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from minivmm.pytest_plugin import settings
from minivmm.pytest_plugin.conditions import LAB_MARK


def wanted_in_lab(config: pytest.Config) -> bool:
    """Whether this session is to run in the lab instead: not if it does, or runs no tests."""
    option = config.option
    if LAB_MARK in os.environ or hasattr(config, "workerinput"):
        return False
    # What pytest only prints, or collects, needs no guest.
    if any(getattr(option, name, False) for name in ("help", "collectonly", "showfixtures")):
        return False
    how = settings.lab(config)
    if how == "auto":
        from minivmm.accel import probe

        return not probe().usable
    return how == "always"


def run_in_lab(config: pytest.Config) -> int:
    """Run it there; the same directory, arguments and environment, and its exit status."""
    from minivmm.errors import MinivmmError
    from minivmm.lab.lab import DEFAULT_MEMORY, Lab, lab_kernel
    from minivmm.units import parse_size

    params = config.invocation_params
    said = config.getini("minivmm_lab_memory")
    # `pytest` has not the working directory in its path, `python -m pytest` has.
    alone = [] if {"", str(Path.cwd())} & set(sys.path) else ["-P"]
    words = [sys.executable, *alone, "-m", "pytest", *(str(word) for word in params.args)]
    try:
        with Lab(lab_kernel(_say), memory=parse_size(said) if said else DEFAULT_MEMORY) as lab:
            return lab.run(words, cwd=str(params.dir))
    except MinivmmError as error:
        raise pytest.UsageError(f"no lab: {error}") from None


def _say(line: str) -> None:
    print(f"minivmm: {line}", file=sys.stderr)
