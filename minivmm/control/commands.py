"""The table of QMP commands: a function's own signature declares its arguments and what it returns.

    @command("qom-get")
    def qom_get(context: Context, path: str, property: str) -> object: ...

A command runs with the machine's lock held and returns its JSON value. What commands do is in the
modules named *_commands.py; how their types look to clients is schema.py's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, TypedDict, TypeVar, get_args, get_origin, get_type_hints

from minivmm.control.face import Context
from minivmm.errors import Refused

F = TypeVar("F", bound=Callable[..., object])

_KINDS: dict[object, tuple[str, type]] = {
    str: ("string", str),
    int: ("integer", int),
    bool: ("boolean", bool),
    list: ("array", list),
    object: ("any", object),
}
"""Type of a parameter -> its name in QEMU's messages, and the Python type that JSON gives."""


class Nothing(TypedDict):
    """What commands answer that have nothing to say: {}."""


@dataclass(frozen=True)
class Parameter:
    """One argument of a command; `type` is its annotation, without the None of "not given"."""

    type: Any
    required: bool


@dataclass(frozen=True)
class Command:
    """A QMP command: its parameters by their names outside Python, and the type that it returns."""

    name: str
    parameters: dict[str, Parameter]
    returns: Any
    function: Callable[..., object]

    def run(self, context: Context, arguments: dict[str, Any]) -> object:
        """Check `arguments` against the signature and execute. Raises Refused as QEMU does."""
        for name, parameter in self.parameters.items():
            if name in arguments:
                _check(name, parameter.type, arguments[name])
            elif parameter.required:
                raise Refused(f"Parameter '{name}' is missing")
        for name in arguments:
            if name not in self.parameters:
                raise Refused(f"Parameter '{name}' is unexpected")
        return self.function(context, **{k.replace("-", "_"): v for k, v in arguments.items()})


COMMANDS: dict[str, Command] = {}
"""Every command by name."""


def command(name: str) -> Callable[[F], F]:
    """Put the decorated function into the table: its first parameter is the Context, '_' is '-'.

    Parameters are str, int, bool, lists of these, Literals of texts, or object for anything; with a
    default they are optional. It raises TypeError for a parameter of another type.
    """

    def add(function: F) -> F:
        hints = get_type_hints(function)
        _, *parameters = inspect.signature(function).parameters.values()
        found = {
            parameter.name.replace("_", "-"): Parameter(
                given(hints[parameter.name]), parameter.default is parameter.empty
            )
            for parameter in parameters
        }
        for parameter in found.values():
            if _base(parameter.type) not in _KINDS:
                raise TypeError(f"{name}: no argument of a command can be {parameter.type}")
        COMMANDS[name] = Command(name, found, hints["return"], function)
        return function

    return add


def perform(context: Context, name: str, arguments: dict[str, Any]) -> object:
    """Run command `name` with the machine's lock held. Raises Refused if there is none."""
    if name not in COMMANDS:
        raise Refused(f"The command {name} has not been found", "CommandNotFound")
    return COMMANDS[name].run(context, arguments)


def given(kind: Any) -> Any:
    """`kind` without its None: what an optional argument is when it is given."""
    some = [part for part in get_args(kind) if part is not NoneType]
    return some[0] if NoneType in get_args(kind) and len(some) == 1 else kind


def _base(kind: Any) -> object:
    """The key of _KINDS for `kind`."""
    origin = get_origin(kind)
    return str if origin is Literal else origin or kind


def _check(name: str, kind: Any, value: object) -> None:
    """Raises Refused, as QEMU words it, if `value` is not of type `kind`."""
    said, wanted = _KINDS[_base(kind)]
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise Refused(f"Invalid parameter type for '{name}', expected: {said}")
    if get_origin(kind) is Literal and value not in get_args(kind):
        raise Refused(f"Parameter '{name}' does not accept value '{value}'")
    if isinstance(value, list) and get_args(kind):
        for index, item in enumerate(value):
            _check(f"{name}[{index}]", get_args(kind)[0], item)
