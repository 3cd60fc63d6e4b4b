"""query-qmp-schema and query-commands: what clients can ask of us, in QEMU's form.

Everything is made from the signatures of commands and the TypedDicts of events (QEMU
qapi/introspect.json says how it reads). The names of types have no meaning to clients.
"""

from __future__ import annotations

from functools import cache
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    NotRequired,
    TypedDict,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from minivmm.control.commands import COMMANDS, Nothing, command
from minivmm.control.events import EVENTS
from minivmm.control.face import Context

_BUILTINS: dict[object, tuple[str, str]] = {
    str: ("str", "string"),
    int: ("int", "int"),
    bool: ("bool", "boolean"),
    float: ("number", "number"),
    NoneType: ("null", "null"),
    object: ("any", "value"),
}
"""Type -> its name, and what it is in JSON."""

_ANYTHING = "any"


class CommandName(TypedDict):
    """CommandInfo of QEMU's qapi/control.json."""

    name: str


SchemaInfo = TypedDict(
    "SchemaInfo",
    {
        "name": str,
        "meta-type": Literal["builtin", "enum", "array", "object", "alternate", "command", "event"],
        "json-type": NotRequired[str],
        "element-type": NotRequired[str],
        "members": NotRequired[list[dict[str, object]]],
        "values": NotRequired[list[str]],
        "arg-type": NotRequired[str],
        "ret-type": NotRequired[str],
        "allow-oob": NotRequired[bool],
    },
)
"""One entity; which members it has depends on its meta-type."""


@command("query-commands")
def query_commands(context: Context) -> list[CommandName]:
    """Names of all commands."""
    return [{"name": name} for name in COMMANDS]


@command("query-qmp-schema")
def query_qmp_schema(context: Context) -> list[SchemaInfo]:
    """Every command and event, and all types that they mention."""
    return _schema(tuple(COMMANDS))


@cache
def _schema(known: tuple[str, ...]) -> list[SchemaInfo]:
    types = TypeNames()
    found: list[SchemaInfo] = []
    for one in map(COMMANDS.__getitem__, known):
        arguments = {
            name: (parameter.type, parameter.required) for name, parameter in one.parameters.items()
        }
        found.append(
            {
                "name": one.name,
                "meta-type": "command",
                "arg-type": types.of_members(f"{one.name}-arg", arguments),
                "ret-type": types.name(one.returns, f"{one.name}-ret"),
                "allow-oob": False,
            }
        )
    for name, data in EVENTS.items():
        found.append({"name": name, "meta-type": "event", "arg-type": types.name(data, name)})
    return found + types.entities


class TypeNames:
    """Gives every Python type a name, and describes in `entities` what it is."""

    def __init__(self) -> None:
        self.entities: list[SchemaInfo] = []
        self._named: dict[Any, str] = {}

    def name(self, kind: Any, place: str) -> str:
        """The name of `kind`; one that has none is called after `place`, where it is used."""
        if kind not in self._named:
            self._named[kind] = self._describe(kind, place)
        return self._named[kind]

    def of_members(self, name: str, members: dict[str, tuple[Any, bool]]) -> str:
        """The name of an object with `members`: name -> type, and whether it is always there."""
        if not members and name != Nothing.__name__:
            return self.name(Nothing, "")
        described: list[dict[str, object]] = []
        self.entities.append({"name": name, "meta-type": "object", "members": described})
        for member, (kind, always) in members.items():
            row: dict[str, object] = {"name": member, "type": self.name(kind, f"{name}.{member}")}
            described.append(row if always else {**row, "default": None})
        return name

    def _describe(self, kind: Any, place: str) -> str:
        origin, parts = get_origin(kind), get_args(kind)
        if kind in _BUILTINS:
            name, json_type = _BUILTINS[kind]
            self.entities.append({"name": name, "meta-type": "builtin", "json-type": json_type})
            return name
        if origin is list:
            element = self.name(parts[0], place)
            name = f"[{element}]"
            self.entities.append({"name": name, "meta-type": "array", "element-type": element})
            return name
        if origin is Literal:
            values = [str(part) for part in parts]
            members: list[dict[str, object]] = [{"name": value} for value in values]
            self.entities.append(
                {"name": place, "meta-type": "enum", "members": members, "values": values}
            )
            return place
        if origin in (Union, UnionType):
            members = [{"type": self.name(part, place)} for part in parts]
            self.entities.append({"name": place, "meta-type": "alternate", "members": members})
            return place
        if is_typeddict(kind):
            return self._describe_dict(kind)
        return self.name(object, _ANYTHING)  # the protocol has no word for it: a mapping, say

    def _describe_dict(self, kind: Any) -> str:
        self._named[kind] = kind.__name__  # it may mention itself
        members = {
            name: (hint, name in kind.__required_keys__)
            for name, hint in get_type_hints(kind).items()
        }
        return self.of_members(kind.__name__, members)
