"""Writes the tables of docs/performance.md anew from the stored run: python -m benchmarks.page"""

from __future__ import annotations

from pathlib import Path

from benchmarks.stored import Run, by_place, details, read

ROOT = Path(__file__).parents[1]
FOUND = ROOT / "docs" / "performance.json"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- table: scripts/bench all -->\n", "<!-- end of table -->\n"


def page(text: str, run: Run) -> str:
    """`text` with its tables made anew."""
    before, _, rest = text.partition(BEGIN)
    tables = f"{by_place(run)}\nCounts behind the figures:\n\n{details(run)}"
    return before + BEGIN + tables + END + rest.partition(END)[2]


def main() -> None:
    """Write them."""
    PAGE.write_text(page(PAGE.read_text(), read(FOUND)))


if __name__ == "__main__":
    main()
