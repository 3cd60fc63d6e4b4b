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
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar, cast

from minivmm.errors import UsageError
from minivmm.units import format_size, parse_size

T = TypeVar("T")
Parser = Callable[[object], object]

_META = "option"
_NUMBERS_END = 1 << 16


@dataclasses.dataclass(frozen=True)
class OptionInfo:
    """What an option takes (`kind`, as shown in help), what it means, how it is read and shown."""

    kind: str
    help: str
    parse: Parser
    show: Callable[[Any], str] = str
    name: str | None = None
    """Its name outside Python, if that is not the usual one."""


def option(help: str, *, default: Any = dataclasses.MISSING) -> Any:
    """A text option."""
    return _option(OptionInfo("text", help, _parse_text), default)


def size_option(help: str, *, default: Any = dataclasses.MISSING) -> Any:
    """A size in bytes; a default of None means "chosen by minivmm"."""
    return _option(OptionInfo("size", help, _parse_size, format_size), default)


def number_option(help: str, *, default: Any = dataclasses.MISSING) -> Any:
    """A non-negative integer."""
    return _option(OptionInfo("number", help, _parse_number), default)


def numbers_option(help: str, *, default: Any = dataclasses.MISSING) -> Any:
    """Numbers below 65536, in a tuple: written as `4`, as the range `0-3`, or as a list of both."""
    return _option(OptionInfo("number[-number]", help, _parse_numbers, _show_numbers), default)


def switch_option(help: str, *, default: Any = dataclasses.MISSING, name: str | None = None) -> Any:
    """on or off. `name`: outside Python, for those that other programs write with '_'."""
    return _option(OptionInfo("on|off", help, _parse_switch, _show_switch, name), default)


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
        rows.append((_outside(item), info, shown))
    return rows


def from_mapping(kind: type[T], values: Mapping[str, object], *, what: str) -> T:
    """An instance of dataclass `kind` from outside names to values (strings or JSON values).

    Raises UsageError, naming `what`, for unknown, missing or unreadable options.
    """
    infos = {_outside(f): f for f in _fields(kind)}
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
    pairs = ((_outside(f), getattr(value, f.name)) for f in _fields(type(value)))
    return {name: item for name, item in pairs if item is not None}


def outside_name(kind: type, name: str) -> str:
    """What the option that is `name` in Python is called outside; `name` itself if there is none.

    So that from_mapping complains about what it does not know under the name that was written.
    """
    return next((_outside(item) for item in _fields(kind) if item.name == name), name)


def tagged(
    data: object, *, key: str, plural: str, one: str, tags: Iterable[str]
) -> Iterator[tuple[str, dict[str, object]]]:
    """(tag, other values) of each object of the JSON list `data`; `key` holds its tag.

    `plural` and `one` are what the config calls them, `tags` what may be written. Raises UsageError
    for what is no such list; whether a tag is known is the caller's to judge.
    """
    if not isinstance(data, list):
        raise UsageError(f"config: {plural} {data!r} is not a list of objects: put it into [ ]")
    for item in data:
        if not isinstance(item, dict) or not isinstance(item.get(key), str):
            ways = " or ".join(f'"{key}": "{tag}"' for tag in tags)
            raise UsageError(f"config: {one} {item!r} is not an object with a {key}: write {ways}")
        yield item[key], {name: value for name, value in item.items() if name != key}


def parse_pairs(text: str, repeatable: tuple[str, ...] = ()) -> tuple[str, dict[str, object]]:
    """`head,key=value,key=value` -> (head, mapping); a bare key means on. `,,` is a literal comma.

    The values of `repeatable` keys come as lists. Raises UsageError if another key appears twice,
    or one is empty.
    """
    head, *rest = [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]
    values: dict[str, object] = {}
    for part in rest:
        key, equals, value = part.partition("=")
        if not key:
            raise UsageError(f"{text!r}: empty key in {part!r} (write key=value)")
        word = value if equals else "on"
        if key in repeatable:
            values[key] = [*cast(list[str], values.get(key, [])), word]
            continue
        if key in values:
            raise UsageError(f"{text!r}: {key}= is given twice")
        values[key] = word
    return head, values


def to_pairs(value: Any) -> str:
    """The inverse of parse_pairs and from_mapping: `key=value,key=value`, set options only."""
    words = {
        name: _show_switch(item) if isinstance(item, bool) else str(item)
        for name, item in to_mapping(value).items()
    }
    return ",".join(f"{name}={word}".replace(",", ",,") for name, word in words.items())


def number_ranges(numbers: Iterable[int]) -> list[str]:
    """`numbers` in ascending order as few words of numbers_option: 0, 1, 2, 5 -> 0-2, 5."""
    runs: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][1] + 1 == number:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return [str(first) if first == last else f"{first}-{last}" for first, last in runs]


def unknown(what: str, name: str, valid: list[str]) -> str:
    """One line for an unknown name: the nearest valid one, and all of them."""
    near = difflib.get_close_matches(name, valid, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"unknown {what}: {name!r}{hint}; valid: {', '.join(valid)}"


def _option(info: OptionInfo, default: Any) -> Any:
    return dataclasses.field(default=default, metadata={_META: info})


def _fields(kind: Any) -> list[dataclasses.Field[Any]]:
    """The options of `kind`: its own first, then those that it inherits."""
    found = [item for item in dataclasses.fields(kind) if _META in item.metadata]
    own = inspect.get_annotations(kind)
    return sorted(found, key=lambda item: item.name not in own)


def _outside(item: dataclasses.Field[Any]) -> str:
    return item.metadata[_META].name or item.name.replace("_", "-")


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


def _parse_numbers(value: object) -> object:
    """Anything is refused before it could become a long list."""
    if isinstance(value, list | tuple):
        return tuple(number for item in value for number in cast(tuple[int], _parse_numbers(item)))
    first, dash, last = value.partition("-") if isinstance(value, str) else (value, "", "")
    low = cast(int, _parse_number(first))
    high = cast(int, _parse_number(last)) if dash else low
    if high >= _NUMBERS_END:
        raise UsageError(f"{high} is out of range: use 0 to {_NUMBERS_END - 1}")
    if high < low:
        raise UsageError(f"range {low}-{high} runs backwards: use {high}-{low}")
    return tuple(range(low, high + 1))


def _show_numbers(value: tuple[int, ...]) -> str:
    return ", ".join(number_ranges(value)) or "none"


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
