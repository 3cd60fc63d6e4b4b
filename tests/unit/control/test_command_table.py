"""Commands declared by their signatures: what is checked, what is refused, and what schemas say."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

import pytest

import minivmm
from minivmm.control import qmp  # noqa: F401 - fills the table
from minivmm.control.commands import COMMANDS, Nothing, command
from minivmm.control.events import EVENTS
from minivmm.control.face import Context
from minivmm.control.schema import TypeNames
from minivmm.errors import Refused
from minivmm.testing.fake_machine import FakeMachine

CONTEXT = Context(FakeMachine("vm1"))


class Pair(TypedDict):
    """A type of its own, which mentions itself."""

    left: int
    more: list[Pair]


@pytest.fixture
def echo() -> Iterator[str]:
    """A command with an argument of every kind; it answers what it was given."""

    @command("x-test-echo")
    def echo(
        context: Context,
        text: str,
        some_number: int = 1,
        flag: bool | None = None,
        names: list[str] | None = None,
        word: Literal["on", "off"] = "on",
        thing: object = None,
    ) -> object:
        """Answers its arguments."""
        return [text, some_number, flag, names, word, thing]

    yield "x-test-echo"
    del COMMANDS["x-test-echo"]


def run(name: str, **arguments: object) -> object:
    found = {key.replace("_", "-"): value for key, value in arguments.items()}
    return COMMANDS[name].run(CONTEXT, found)


def test_arguments_reach_the_function_under_their_names_in_python(echo: str) -> None:
    assert run(echo, text="a") == ["a", 1, None, None, "on", None]
    assert run(
        echo, text="a", some_number=-2, flag=True, names=["x"], word="off", thing={"b": 1}
    ) == ["a", -2, True, ["x"], "off", {"b": 1}]


@pytest.mark.parametrize(
    ("arguments", "desc"),
    [
        ({}, "Parameter 'text' is missing"),
        ({"text": 1}, "Invalid parameter type for 'text', expected: string"),
        ({"text": "a", "other": 1}, "Parameter 'other' is unexpected"),
        (
            {"text": "a", "some_number": True},
            "Invalid parameter type for 'some-number', expected: integer",
        ),
        (
            {"text": "a", "some_number": 1.0},
            "Invalid parameter type for 'some-number', expected: integer",
        ),
        ({"text": "a", "flag": 1}, "Invalid parameter type for 'flag', expected: boolean"),
        ({"text": "a", "flag": None}, "Invalid parameter type for 'flag', expected: boolean"),
        ({"text": "a", "names": "x"}, "Invalid parameter type for 'names', expected: array"),
        (
            {"text": "a", "names": ["x", 3]},
            "Invalid parameter type for 'names[1]', expected: string",
        ),
        ({"text": "a", "word": "maybe"}, "Parameter 'word' does not accept value 'maybe'"),
    ],
)
def test_what_does_not_fit_is_refused(echo: str, arguments: dict[str, object], desc: str) -> None:
    with pytest.raises(Refused) as refusal:
        run(echo, **arguments)
    assert str(refusal.value) == desc


def test_a_parameter_that_json_cannot_give_is_a_bug_of_ours() -> None:
    with pytest.raises(TypeError, match="no argument of a command can be"):

        @command("x-test-bytes")
        def wrong(context: Context, data: bytes) -> Nothing:
            """Never called."""
            return {}

    assert "x-test-bytes" not in COMMANDS


def entities(kind: object) -> tuple[str, dict[str, Any]]:
    types = TypeNames()
    name = types.name(kind, "place")
    return name, {entity["name"]: cast(Any, entity) for entity in types.entities}


def test_schemas_of_types() -> None:
    assert entities(list[list[int]])[0] == "[[int]]"
    assert entities(Literal["a", "b"])[1]["place"]["values"] == ["a", "b"]
    name, found = entities(int | None)
    assert [member["type"] for member in found[name]["members"]] == ["int", "null"]
    assert entities(dict[str, int])[0] == "any"


def test_a_type_may_mention_itself() -> None:
    name, found = entities(Pair)

    assert found[name]["members"] == [
        {"name": "left", "type": "int"},
        {"name": "more", "type": "[Pair]"},
    ]


def test_every_command_says_what_it_does() -> None:
    for name, one in COMMANDS.items():
        assert inspect.getdoc(one.function), name


def test_every_event_of_the_code_is_in_the_table() -> None:
    """Whoever emits an event names it in a literal, or in the constant EVENT."""
    emitted = set()
    floor = Path(minivmm.__path__[0])
    for path in (*floor.glob("*.py"), *floor.glob("snapshot/*.py"), *floor.glob("migration/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr="_emit" | "emit" | "_tell") | ast.Name(id="emit"),
                    args=[ast.Constant(value=str(name)), *_],
                ) if name.isupper():
                    emitted.add(name)
                case ast.Assign(targets=[ast.Name(id="EVENT")], value=ast.Constant(value=name)):
                    emitted.add(name)

    assert emitted == set(EVENTS)


def test_docs_name_every_command_and_event() -> None:
    text = (Path(minivmm.__path__[0]).parent / "docs" / "control.md").read_text()

    missing = [name for name in (*COMMANDS, *EVENTS) if f"`{name}`" not in text]
    assert missing == []
