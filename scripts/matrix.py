"""Writes the tables of docs/matrix.md anew, from docs/matrix.json: python scripts/matrix.py"""

from __future__ import annotations

import sys
from pathlib import Path

from minivmm.matrix.results import read
from minivmm.matrix.tables import markdown

ROOT = Path(__file__).parents[1]
FOUND = ROOT / "docs" / "matrix.json"
PAGE = ROOT / "docs" / "matrix.md"
BEGIN, END = "<!-- table: scripts/matrix -->\n", "<!-- end of table -->\n"


def page(text: str) -> str:
    """`text` with its tables made anew."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + markdown(read(FOUND)) + END + rest.partition(END)[2]


def main() -> int:
    """Write them."""
    PAGE.write_text(page(PAGE.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
