"""Every rule has a test or a reason, every mark names a rule, and docs/conformance.md says so."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from script_modules import load_script

COUNTS = {"MEM": 46, "PCI": 32, "GEN": 11, "SPL": 10, "PKD": 7}
"""How many statements about devices the chapters have."""

script = load_script("conformance")
TEXT = script.RULES.read_text()


def test_no_rule_is_without_test_and_reason_and_no_mark_without_rule() -> None:
    assert script.problems(TEXT, script.all_marks()) == []


def test_the_table_is_what_the_generator_writes() -> None:
    written = script.render(script.read_rules(TEXT, script.all_marks()))

    assert script.TABLE.read_text() == written, "run scripts/conformance"


def test_all_statements_of_the_chapters_are_there_in_their_order() -> None:
    wanted = [f"{chapter}-D-{n + 1}" for chapter, count in COUNTS.items() for n in range(count)]

    assert list(tomllib.loads(TEXT)["means"]) == wanted


def marked(folder: Path, decorators: str, name: str = "test_it") -> Path:
    path = folder / "test_sample.py"
    path.write_text(f"import pytest\n\n{decorators}\ndef {name}():\n    pass\n")
    return path


RULES = '[means]\nA-D-1 = "one"\nA-D-2 = "two"\nA-D-3 = "three"\n[argued]\nA-D-3 = "because"\n'


@pytest.mark.parametrize(
    ("ids", "wrong"),
    [
        ('"A-D-1", "A-D-2"', []),
        ('"A-D-1"', ["A-D-2: neither a test nor a reason"]),
        ('"A-D-1", "A-D-2", "A-D-4"', ["test_sample.py::test_it: no rule A-D-4"]),
        ('"A-D-1", "A-D-2", "A-D-3"', ["A-D-3: argued, but test_sample.py::test_it tests it"]),
    ],
)
def test_what_is_inconsistent_is_found(tmp_path: Path, ids: str, wrong: list[str]) -> None:
    marked(tmp_path, f"@pytest.mark.rule({ids})")

    assert script.problems(RULES, script.all_marks(tmp_path)) == wrong


def test_marks_of_several_decorators_count_and_others_do_not(tmp_path: Path) -> None:
    path = marked(
        tmp_path,
        '@pytest.mark.rule("A-D-1")\n@pytest.mark.timeout(9)\n@pytest.mark.rule("A-D-2")',
    )

    assert [mark.rules for mark in script.read_marks(path)] == [("A-D-1", "A-D-2")]


def test_a_marked_function_that_is_no_test_is_found(tmp_path: Path) -> None:
    marked(tmp_path, '@pytest.mark.rule("A-D-1", "A-D-2")', "helper")

    assert script.problems(RULES, script.all_marks(tmp_path)) == [
        "test_sample.py::helper: is marked, but no test"
    ]


def test_ids_that_are_not_written_out_are_refused(tmp_path: Path) -> None:
    path = marked(tmp_path, "@pytest.mark.rule(*IDS)")

    with pytest.raises(ValueError, match=r"test_sample.py::test_it: \*IDS is no rule's name"):
        list(script.read_marks(path))


def test_a_reason_without_a_rule_is_found() -> None:
    text = '[means]\nA-D-1 = "one"\n[argued]\nA-D-1 = "because"\nA-D-9 = "no"\n'

    assert script.problems(text, []) == ["A-D-9 is argued, but means nothing"]


def test_a_row_tells_meaning_tests_and_state() -> None:
    rules = [
        script.Rule("MEM-D-1", "one", "", ["test_a.py::test_x", "test_b.py::test_y"]),
        script.Rule("MEM-D-2", "two", "it cannot be seen"),
    ]

    table = script.render(rules).splitlines()

    assert "2 statements: 1 tested, 1 argued." in table
    assert "| MEM-D-1 | one | `test_a.py::test_x`<br>`test_b.py::test_y` | tested |" in table
    assert "| MEM-D-2 | two | - | argued: it cannot be seen |" in table
