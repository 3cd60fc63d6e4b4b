"""The fake bench can be imported by its name, also by the runs of pytest that tests start."""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = str(Path(__file__).parents[1] / "api")

sys.path.insert(0, FOLDER)
