"""The machine that something is measured on, as stored results tell of it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

LAB_MARK = "MINIVMM_LAB"
"""Variable that is set in the lab (minivmm.lab.lab)."""


def in_lab() -> bool:
    """Whether this is the lab, where everything is emulated."""
    return LAB_MARK in os.environ


def about_host() -> dict[str, Any]:
    """Its kernel, its CPUs, and whether it is the lab."""
    return {
        "kernel": platform.release(),
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "lab": in_lab(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "unknown")
