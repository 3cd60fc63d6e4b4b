"""A directory in memory, where files are counted exactly and at once."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """On tmpfs: others count blocks of their own as well, and not all know O_TMPFILE."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        yield Path(path)
