"""Makes the fake guest beside it importable, with fast patience."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fakes do not change by themselves: nobody waits for them."""
    monkeypatch.setattr("minivmm.matrix.runner.CLEAN_QUIET", 0.01)
    monkeypatch.setattr("minivmm.matrix.leaks.LINGER", 0.0)
    monkeypatch.setattr("minivmm.matrix.guest.QUIET", 0.01)
