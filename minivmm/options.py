"""Options as dataclass fields: one declaration is the command line, the JSON config and the help.

    @dataclass(frozen=True, kw_only=True)
    class VirtioMemSpec:
        id: str = option("name of the device", default="vmem0")
        size: int = size_option("size of the region")

Names are written with '-' outside Python (`requested-size`) and with '_' inside. A field without a
default is required. Sizes are bytes; strings take suffixes (minivmm.units).
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from minivmm.errors import UsageError
from minivmm.units import format_size, parse_size

T = TypeVar("T")
Parser = Callable[[object], object]

_META = "option"


@dataclasses.dataclass(frozen=True)
class OptionInfo:
    """What an option takes (`kind`, as shown in help), what it means, how it is read and shown."""

    kind: str
    help: str
    parse: Parser
    show: Callable[[Any], str] = str


def option(help: str, *, default: Any = dataclasses.MISSING) -> Any:
    """A text option."""
    return _option(OptionInfo("text", help, _parse_text), default)


def size_option(help: str, *, default: Any = dataclasses.MISSING) -> Any:
    """A size in bytes; a default of None means "chosen by minivmm"."""
    return _option(OptionInfo("size", help, _parse_size, format_size), default)


def number_option(help: str, *, default: Any = dataclasses.MISSING) -> Any:
    """A non-negative integer."""
    return _option(OptionInfo("number", help, _parse_number), default)


def switch_option(help: str, *, default: Any = dataclasses.MISSING) -> Any:
    """on or off."""
    return _option(OptionInfo("on|off", help, _parse_switch, _show_switch), default)


def choice_option(
    help: str, choices: tuple[str, ...], *, default: Any = dataclasses.MISSING
) -> Any:
    """One of `choices`."""

    def parse(value: object) -> object:
        if value not in choices:
            raise UsageError(f"{value!r} is not one of {', '.join(choices)}")
        return value

    return _option(OptionInfo("|".join(choices), help, parse), default)


def describe(kind: type) -> list[tuple[str, OptionInfo, str]]:
    """(name, info, default as shown in help) of every option of dataclass `kind`, in order."""
    rows: list[tuple[str, OptionInfo, str]] = []
    for item in _fields(kind):
        info: OptionInfo = item.metadata[_META]
        if item.default is dataclasses.MISSING:
            shown = "required"
        elif item.default is None:
            shown = "automatic"
        else:
            shown = info.show(item.default)
        rows.append((_outside(item.name), info, shown))
    return rows


def from_mapping(kind: type[T], values: Mapping[str, object], *, what: str) -> T:
    """An instance of dataclass `kind` from outside names to values (strings or JSON values).

    Raises UsageError, naming `what`, for unknown, missing or unreadable options.
    """
    infos = {_outside(f.name): f for f in _fields(kind)}
    arguments: dict[str, object] = {}
    for name, value in values.items():
        if name not in infos:
            raise UsageError(unknown(f"property of {what}", name, list(infos)))
        try:
            arguments[infos[name].name] = infos[name].metadata[_META].parse(value)
        except UsageError as error:
            raise UsageError(f"{what}: {name}: {error}") from None
    for name, item in infos.items():
        if item.default is dataclasses.MISSING and item.name not in arguments:
            raise UsageError(f"{what}: {name}= is required ({item.metadata[_META].help})")
    return kind(**arguments)


def to_mapping(value: Any) -> dict[str, object]:
    """The inverse of from_mapping: outside names to JSON values; unset (None) ones are left out."""
    pairs = ((_outside(f.name), getattr(value, f.name)) for f in _fields(type(value)))
    return {name: item for name, item in pairs if item is not None}


def parse_pairs(text: str) -> tuple[str, dict[str, object]]:
    """`head,key=value,key=value` -> (head, mapping); a bare key means on. `,,` is a literal comma.

    Raises UsageError if a key appears twice or is empty.
    """
    head, *rest = [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]
    values: dict[str, object] = {}
    for part in rest:
        key, equals, value = part.partition("=")
        if not key:
            raise UsageError(f"{text!r}: empty key in {part!r} (write key=value)")
        if key in values:
            raise UsageError(f"{text!r}: {key}= is given twice")
        values[key] = value if equals else "on"
    return head, values


def unknown(what: str, name: str, valid: list[str]) -> str:
    """One line for an unknown name: the nearest valid one, and all of them."""
    near = difflib.get_close_matches(name, valid, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"unknown {what}: {name!r}{hint}; valid: {', '.join(valid)}"


def _option(info: OptionInfo, default: Any) -> Any:
    return dataclasses.field(default=default, metadata={_META: info})


def _fields(kind: Any) -> list[dataclasses.Field[Any]]:
    return [item for item in dataclasses.fields(kind) if _META in item.metadata]


def _outside(name: str) -> str:
    return name.replace("_", "-")


def _parse_text(value: object) -> object:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{value!r} is not a text")
    return value


def _parse_size(value: object) -> object:
    if isinstance(value, str):
        return parse_size(value)
    return _parse_number(value)


def _parse_number(value: object) -> object:
    if isinstance(value, str):
        try:
            value = int(value, 0)
        except ValueError:
            raise UsageError(f"{value!r} is not a number") from None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UsageError(f"{value!r} is not a non-negative number")
    return value


def _parse_switch(value: object) -> object:
    if isinstance(value, bool):
        return value
    if value in ("on", "yes", "true"):
        return True
    if value in ("off", "no", "false"):
        return False
    raise UsageError(f"{value!r} is neither on nor off")


def _show_switch(value: bool) -> str:
    return "on" if value else "off"
