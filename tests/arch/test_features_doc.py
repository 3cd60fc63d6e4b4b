"""docs/features.md has every row of the guide's list, and the tests that it names exist."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "features.md").read_text()

LISTED = (
    *("No DIMMs", "Small steps", "Address", "Usable region", "goes back to the host"),
    *("Transparent huge", "gigantic", "Backings", "BUSY", "page sizes that differ", "vNUMA"),
    *("unbound", "kexec", "kdump", "at start", "system reset", "except while migrating"),
    *("PERSISTENT_SUSPEND", "UNPLUGGED_INACCESSIBLE", "Memory slots", "without a driver"),
    *("cannot address", "why, kick", "Malicious", "own devices", "Audit", "e820", "answered"),
    *("Passthrough", "Migration", "Nested"),
)
"""Words by which each line of the guide's feature list, and of issue 3, is found."""

PEERS = 3


def table(heading: str) -> list[list[str]]:
    """Cells of the rows of the table under `## heading`."""
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1:]]


HERE, ELSEWHERE = table("Here"), table("Elsewhere")
TESTS = [name for _, _, tests in HERE for name in re.findall(r"`([^`]+)`", tests)]


@cache
def functions(file: str) -> set[str]:
    """Names of the test functions in the one file of that name."""
    (path,) = (ROOT / "tests").rglob(file)
    tree = ast.parse(path.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", sorted(set(TESTS)))
def test_named_test_exists(name: str) -> None:
    file, _, function = name.partition("::")

    assert function.startswith("test_")
    assert function in functions(file)


@pytest.mark.parametrize("words", LISTED)
def test_every_line_of_the_guide_has_a_row(words: str) -> None:
    assert len([feature for feature, *_ in HERE if words in feature]) == 1


def test_no_row_is_a_line_of_nobody() -> None:
    assert len(HERE) == len(LISTED)


@pytest.mark.parametrize(("feature", "state", "tests"), HERE)
def test_a_row_is_shown_by_a_test_or_says_who_will_do_it(
    feature: str, state: str, tests: str
) -> None:
    if re.fullmatch(r"not yet: issue \d+", state):
        assert tests == "-"
    else:
        assert state == "works" or state.startswith("described: ")
        assert re.fullmatch(r"`[\w.:]+`(<br>`[\w.:]+`)*", tests)


def test_peers_have_the_same_rows() -> None:
    assert [feature for feature, *_ in ELSEWHERE] == [feature for feature, *_ in HERE]
    assert all(len(answers) == PEERS and all(answers) for _, *answers in ELSEWHERE)


def test_the_guide_says_what_nesting_means() -> None:
    """A nested guest's memory, a device of its own, this device passed on, and protection."""
    guide = (ROOT / "docs" / "virtio-mem.md").read_text()
    section = guide.split("\n## Nested VMs\n")[1]

    for words in ("memory of a nested guest", "free pages of the outer", "cannot be passed on"):
        assert words in section
    assert "**protect=**" in section
