"""Writes docs/conformance.md: every rule of tests/conformance/rules.toml, and what proves it.

Tests are read, not run: a rule is proven by the functions that carry @pytest.mark.rule("MEM-D-26").
What is inconsistent goes to standard error and ends it with 1; nothing is written then.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
RULES = ROOT / "tests" / "conformance" / "rules.toml"
TABLE = ROOT / "docs" / "conformance.md"

CHAPTERS = {
    "MEM": "The memory device",
    "PCI": "Virtio over PCI",
    "GEN": "Status, features, configuration, reset",
    "SPL": "Split rings",
    "PKD": "Packed rings",
}

OPENING = """\
# Conformance

Every statement that the virtio specification makes about devices, as far as ours are concerned, in
our own words, with the tests that fail if it is broken. `scripts/conformance` makes this table of
`tests/conformance/rules.toml` and of the tests' marks; `tests/arch/test_conformance_table.py` keeps
it complete. Most tests drive the device as a guest would, by configuration space, BARs and rings,
in one process without KVM; those in `tests/guest` boot Linux.

Identifiers number the statements of each chapter of virtio-spec 1.4 in the order of its text, D for
those about devices. File names of tests are unique: `find tests -name FILE`. "Argued" are those
that no test of this device could see broken.
"""


@dataclass(frozen=True)
class Rule:
    """One statement: what it means, the tests that prove it as file::function, or why none can."""

    id: str
    meaning: str
    reason: str = ""
    tests: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        """The last column of the table."""
        return f"argued: {self.reason}" if self.reason else "tested"


@dataclass(frozen=True)
class Mark:
    """A test function, "file.py::test_x", and what it claims to prove."""

    test: str
    rules: tuple[str, ...]


def read_rules(text: str, marks: list[Mark]) -> list[Rule]:
    """The rules of `text` (TOML), in its order, with the tests of `marks`."""
    tables = tomllib.loads(text)
    argued = tables["argued"]
    return [
        Rule(
            name,
            meaning,
            argued.get(name, ""),
            sorted({mark.test for mark in marks if name in mark.rules}),
        )
        for name, meaning in tables["means"].items()
    ]


def read_marks(path: Path) -> Iterator[Mark]:
    """Every marked function of a file of tests. Raises ValueError for ids that are no literals."""
    text = path.read_text()
    if "mark.rule(" not in text:
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            calls = [item for item in node.decorator_list if _is_rule(item)]
            where = f"{path.name}::{node.name}"
            ids = [name for call in calls for name in _literals(call, where)]
            if calls:
                yield Mark(where, tuple(ids))


def all_marks(folder: Path = ROOT / "tests") -> list[Mark]:
    """The marks of all tests, in a fixed order."""
    return [mark for path in sorted(folder.rglob("test_*.py")) for mark in read_marks(path)]


def problems(text: str, marks: list[Mark]) -> list[str]:
    """What is wrong with rules (TOML) and marks, a line each."""
    tables = tomllib.loads(text)
    known, argued = tables["means"], tables["argued"]
    found = [f"{name} is argued, but means nothing" for name in argued if name not in known]
    for mark in marks:
        found += [f"{mark.test}: no rule {name}" for name in mark.rules if name not in known]
        if not mark.test.partition("::")[2].startswith("test_"):
            found.append(f"{mark.test}: is marked, but no test")
    for rule in read_rules(text, marks):
        if not rule.tests and not rule.reason:
            found.append(f"{rule.id}: neither a test nor a reason")
        if rule.tests and rule.reason:
            found.append(f"{rule.id}: argued, but {rule.tests[0]} tests it")
    return found


def render(rules: list[Rule]) -> str:
    """The text of docs/conformance.md."""
    tested = sum(1 for rule in rules if not rule.reason)
    lines = [OPENING, f"{len(rules)} statements: {tested} tested, {len(rules) - tested} argued."]
    for prefix, title in CHAPTERS.items():
        lines += ["", f"## {title}", "", "| id | meaning | shown by | state |", "|---|---|---|---|"]
        lines += [_row(rule) for rule in rules if rule.id.startswith(f"{prefix}-")]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the table; 1 if something is inconsistent."""
    text, marks = RULES.read_text(), all_marks()
    wrong = problems(text, marks)
    for line in wrong:
        print(f"conformance: {line}", file=sys.stderr)
    if wrong:
        return 1
    rules = read_rules(text, marks)
    TABLE.write_text(render(rules))
    tested = sum(1 for rule in rules if not rule.reason)
    print(f"conformance: {tested} tested, {len(rules) - tested} argued: {TABLE.relative_to(ROOT)}")
    return 0


def _row(rule: Rule) -> str:
    tests = "<br>".join(f"`{test}`" for test in rule.tests) or "-"
    return f"| {rule.id} | {rule.meaning} | {tests} | {rule.state} |"


def _is_rule(decorator: ast.expr) -> bool:
    return isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.rule"


def _literals(call: ast.expr, where: str) -> Iterator[str]:
    assert isinstance(call, ast.Call)
    for argument in call.args:
        if not isinstance(argument, ast.Constant) or not isinstance(argument.value, str):
            raise ValueError(f"{where}: {ast.unparse(argument)} is no rule's name")
        yield argument.value


if __name__ == "__main__":
    sys.exit(main())
