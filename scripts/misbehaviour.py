"""Runs every misbehaviour of a device against real kernels, and writes the table of what they do.

python scripts/misbehaviour.py run 6.12      inside a lab: docs/misbehaviour.json, that kernel
python scripts/misbehaviour.py table         docs/misbehaviour.md's table from that
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOUND = ROOT / "docs" / "misbehaviour.json"
PAGE = ROOT / "docs" / "misbehaviour.md"
BEGIN, END = "<!-- table: scripts/misbehaviour -->\n", "<!-- end of table -->\n"
KERNELS = ("6.1", "6.12")
MIB = 1 << 20

sys.path.insert(0, str(ROOT / "tests" / "guest"))


def run(kernel: str) -> None:
    """Boot `kernel`, try all, keep what was found."""
    from misbehaviour import find, rows

    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINIVMM_RUNTIME_DIR"] = folder
        found = rows(kernel, find(kernel, Path(folder)))
    kept = json.loads(FOUND.read_text()) if FOUND.exists() else {}
    kept[kernel] = found
    FOUND.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    print(json.dumps(found, indent=1))


def table(found: dict[str, Any]) -> str:
    """A row for each case; where both kernels do the same, it is said once."""
    from misbehaviour import CASES

    lines = [
        "| rule | Linux 6.1 | Linux 6.12 | why |",
        "|---|---|---|---|",
    ]
    for case in CASES:
        cells = [outcome(found.get(kernel, {}).get(case.name)) for kernel in KERNELS]
        if cells[0] == cells[1]:
            cells[1] = "the same"
        why = f"a race, of which this is one end: {case.why}" if case.races else case.why
        lines.append(f"| {case.name} | {cells[0]} | {cells[1]} | {why} |")
    return "\n".join(lines) + "\n"


def outcome(row: dict[str, Any] | None) -> str:
    """What came of it, in a cell."""
    if row is None:
        return "not run"
    cure = row["cure"]
    helped = "" if cure == "none needed" else f"; cure: {cure}"
    said = "".join(f"; `{line}`" for line in row["log"][:2])
    asked = ", ".join(
        f"{kind} {count} {answer}"
        for kind, answers in row["answers"].items()
        for answer, count in answers.items()
    )
    return f"{row['plugged'] // MIB}M plugged{helped}; {asked or 'nothing asked'}{said}"


def main() -> int:
    """As the arguments say."""
    match sys.argv[1:]:
        case ["run", kernel]:
            run(kernel)
        case ["table"]:
            PAGE.write_text(page(PAGE.read_text(), json.loads(FOUND.read_text())))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


def page(text: str, found: dict[str, Any]) -> str:
    """`text` with its table made anew."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + table(found) + END + rest.partition(END)[2]


if __name__ == "__main__":
    sys.exit(main())
