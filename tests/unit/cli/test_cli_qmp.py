"""`minivmm qmp` and `minivmm inspect` against a fake machine."""

from __future__ import annotations

import json

import pytest

from minivmm.cli import main
from minivmm.cli.inspect import SHOWN, lines
from minivmm.cli.qmp import parse
from minivmm.errors import ExitStatus, UsageError
from minivmm.runtime import MachineDir
from minivmm.testing.fake_machine import FakeMachine
from minivmm.units import MIB

pytestmark = pytest.mark.usefixtures("live")


def test_a_command_with_and_without_the_name(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["query-name"], ["vm1", "query-name"]):
        assert main.run(["qmp", *words]) == 0
        assert json.loads(capsys.readouterr().out) == {"name": "vm1"}


def test_arguments_are_json_or_texts(
    machine: FakeMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["qom-set", "path=vmem0", "property=requested-size", f"value={64 * MIB}"]

    assert main.run(["qmp", *words, "--json"]) == 0

    assert machine.memory_devices["vmem0"].requested_size == 64 * MIB
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "name": "vm1", "return": {}}


def test_the_human_monitor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["qmp", "vm1", "--hmp", "info status"]) == 0
    assert capsys.readouterr().out == "VM status: running\n"


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        (
            ["query-stats"],
            ExitStatus.FAILED,
            "query-stats: The command query-stats has not been found (did you mean query-status?)",
        ),
        (["qom-get"], ExitStatus.FAILED, "qom-get: Parameter 'path' is missing"),
        (["a", "b", "c"], ExitStatus.USAGE, "argument 'c' is not KEY=VALUE"),
        (["x", "a=1", "b"], ExitStatus.USAGE, "argument 'b' is not KEY=VALUE"),
        (["x", "a=1", "a=2"], ExitStatus.USAGE, "argument 'a=2': the key is empty, or was given"),
        (["x", "=2"], ExitStatus.USAGE, "argument '=2': the key is empty, or was given before"),
        ([], ExitStatus.USAGE, "qmp needs a command: minivmm qmp [NAME] COMMAND [KEY=VALUE...]"),
        (["nope", "query-name"], ExitStatus.NOT_RUNNING, "no VM named 'nope' is running"),
        (["a", "b", "--hmp", "info"], ExitStatus.USAGE, "--hmp takes the whole line, in quotes"),
    ],
)
def test_what_is_wrong_is_one_line(
    words: list[str], status: ExitStatus, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["qmp", *words]) == status
    printed = capsys.readouterr().err
    assert printed.startswith(f"minivmm: {line}") and printed.count("\n") == 1


def test_keys_with_dots_are_objects() -> None:
    words = ["x", "a.b=1", "a.c=[2]", "d=on", "under_score=true", 'e="3"']

    assert parse(words, monitor=False) == (
        None,
        "x",
        {"a": {"b": 1, "c": [2]}, "d": "on", "under_score": True, "e": "3"},
    )
    with pytest.raises(UsageError, match="a has a value already"):
        parse(["x", "a=1", "a.b=2"], monitor=False)


def test_inspect_the_tree_and_a_part(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["vm1"], ["vm1", "."]):
        assert main.run(["inspect", *words]) == 0
        assert capsys.readouterr().out.splitlines()[:2] == ["name: vm1", "state: running"]
    for words in (["state"], ["vm1", "state"]):
        assert main.run(["inspect", *words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {
            "schema": 1,
            "name": "vm1",
            "path": "state",
            "tree": "running",
        }


def test_inspect_what_is_not_there(live: MachineDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["inspect", "sate"]) == ExitStatus.FAILED
    assert "unknown part of the machine: 'sate' (did you mean state?)" in capsys.readouterr().err
    assert main.run(["inspect", "nope", "state"]) == ExitStatus.NOT_RUNNING
    assert main.run(["inspect", "a", "b", "c"]) == ExitStatus.USAGE


def test_trees_for_people() -> None:
    tree = {
        "vcpus": [{"index": 0, "parked": False}],
        "none": None,
        "empty": [],
        "events": [f"event {number}" for number in range(SHOWN + 3)],
    }
    shown = list(lines(tree, whole=False))

    assert shown[:7] == [
        *("vcpus:", "  -", "    index: 0", "    parked: no", "none: -", "empty: -", "events:"),
    ]
    assert shown[7] == "  (and 3 before these: ask for this path alone to see them)"
    assert shown[8:] == [f"  - event {number}" for number in range(3, SHOWN + 3)]
    assert len(list(lines(tree["events"], whole=True))) == SHOWN + 3
