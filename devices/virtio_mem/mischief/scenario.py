"""Scenario files: rules for the devices of a machine, as JSON or as TOML (docs/misbehaviour.md)."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.devices.virtio_mem.mischief import actions, others, places
from minivmm.devices.virtio_mem.mischief.installed import Mischief, mischief_of
from minivmm.devices.virtio_mem.mischief.others import FIELDS
from minivmm.devices.virtio_mem.mischief.rules import Rule
from minivmm.errors import UsageError
from minivmm.options import unknown
from minivmm.units import parse_size

LARGEST_FILE = 1 << 20
"""Bytes."""


def _number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{value!r} is no number")
    return value


def _size(value: object) -> int:
    return parse_size(value) if isinstance(value, str) else _number(value)


def _name(value: object) -> str | int:
    return value if isinstance(value, str) else _number(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{value!r} is no text")
    return value


def _real(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{value!r} is no number")
    return float(value)


def _range(value: object) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise UsageError(f"{value!r} is no pair of addresses: [START, END]")
    return _size(value[0]), _size(value[1])


def _bytes(value: object) -> bytes:
    try:
        return bytes.fromhex(_text(value))
    except ValueError:
        raise UsageError(f"{value!r} is no text of hexadecimal digits") from None


def _flag(make: Callable[[], Any]) -> Callable[[object], Any]:
    def parse(value: object) -> Any:
        if value is not True:
            raise UsageError(f"{value!r} is not true: leave the key out instead")
        return make()

    return parse


Parser = Callable[[object], Any]

_WHEN: dict[str, Parser] = {
    "nth": _number,
    "times": _number,
    "probability": _real,
    "seed": _number,
}
_REQUEST: dict[str, Parser] = {
    "answer": lambda value: actions.answer(_name(value)),
    "respond": lambda value: actions.respond(_bytes(value)),
    "shorten": lambda value: actions.shorten(_number(value)),
    "used-length": lambda value: actions.used_length(_number(value)),
    "delay": lambda value: actions.delay(_real(value)),
    "silence": _flag(actions.silence),
    "twice": _flag(actions.twice),
    "drop-interrupt": _flag(actions.drop_interrupt),
    "repeat-interrupt": lambda value: actions.repeat_interrupt(_number(value)),
    "break-index": lambda value: actions.break_index(_number(value)),
    "refuse-host": _flag(actions.refuse_host),
    "resize": lambda value: actions.resize(_size(value)),
    "shrink-usable": lambda value: actions.shrink_usable(_size(value)),
}
_CONFIG: dict[str, Parser] = {
    "show": lambda value: others.show(_size(value)),
    "resize": lambda value: others.resize_now(_size(value)),
}
_INTERRUPT: dict[str, Parser] = {
    "drop": _flag(others.drop),
    "repeat": lambda value: others.repeat(_number(value)),
}
_ABOUT: dict[str, tuple[dict[str, Parser], dict[str, Parser]]] = {
    "request": ({"type": _text, "gpa": _range}, _REQUEST),
    "config": ({"field": _text}, _CONFIG),
    "config-interrupt": ({}, _INTERRUPT),
}
"""Value of `on` -> keys that say which of them, and keys that say what to do."""


@dataclass(frozen=True)
class _Reader:
    """Complains with the place in `path`."""

    path: Path
    lines: Mapping[places.Path, int]

    def refuse(self, why: object, *where: str | int) -> UsageError:
        """The error, at the innermost of `where` that has a line."""
        at: places.Path = where
        while at and at not in self.lines:
            at = at[:-1]
        return UsageError(f"{self.path}:{self.lines.get(at, 1)}: {why}")


class Scenario:
    """A file's rules, for the devices of one machine."""

    def __init__(self, reader: _Reader, entries: list[Mapping[str, object]]) -> None:
        self._reader = reader
        self._entries = entries
        self._rules: list[Rule] = []

    def install(self, devices: Mapping[str, VirtioMem]) -> None:
        """Make the rules those of `devices`, by id. Lock held. Raises UsageError: FILE:LINE: why.

        A rule without `device` is for the first one.
        """
        for number, entry in enumerate(self._entries):
            name = entry.get("device", next(iter(devices), None))
            if name not in devices:
                why = unknown("memory device", str(name), list(devices))
                raise self._reader.refuse(why, "rules", number, "device")
            rule = self._rule(mischief_of(devices[str(name)]), number, entry)
            line = self._reader.lines.get(("rules", number), 1)
            rule.where = f"{self._reader.path}:{line}"
            self._rules.append(rule)

    def idle(self) -> list[str]:
        """A line for each rule that never acted, with what came instead."""
        return [rule.complaint() for rule in self._rules if not rule.fired]

    def _rule(self, mischief: Mischief, number: int, entry: Mapping[str, object]) -> Rule:
        refuse = self._reader.refuse
        about = entry.get("on", "request")
        if about not in _ABOUT:
            why = unknown("kind of rule", str(about), list(_ABOUT))
            raise refuse(why, "rules", number, "on")
        which, does = _ABOUT[str(about)]
        parsers = {**which, **_WHEN, **does}
        values: dict[str, Any] = {}
        for key, value in entry.items():
            if key in ("device", "on"):
                continue
            if key not in parsers:
                raise refuse(unknown("key of the rule", key, list(parsers)), "rules", number, key)
            try:
                values[key] = parsers[key](value)
            except UsageError as error:
                raise refuse(f"{key}: {error}", "rules", number, key) from None
        when = {key: values[key] for key in _WHEN if key in values}
        things = [values[key] for key in values if key in does]
        if not things:
            raise refuse(f"the rule does nothing: give {', '.join(does)}", "rules", number)
        try:
            return _make(mischief, str(about), values, when, things)
        except UsageError as error:
            raise refuse(error, "rules", number) from None


def read_scenario(path: Path) -> Scenario:
    """The rules in `path`: TOML if it ends in .toml, else JSON. Raises UsageError: FILE:LINE: why.

    Rules are checked one by one when they are installed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"scenario {path} cannot be read: {error.strerror}") from None
    if len(data) > LARGEST_FILE:
        raise UsageError(f"scenario {path} has {len(data)} bytes: at most {LARGEST_FILE}")
    toml = path.suffix == ".toml"
    try:
        text = data.decode()
        content = tomllib.loads(text) if toml else json.loads(text)
        reader = _Reader(path, places.toml_lines(text) if toml else places.json_lines(text))
    except (ValueError, RecursionError) as error:
        line = places.syntax_line(error) if isinstance(error, ValueError) else None
        kind = "TOML" if toml else "JSON"
        raise UsageError(f"{path}:{line or 1}: this is no {kind}: {error}") from None
    entries = content.get("rules") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        what = "[[rules]] tables" if toml else '{"rules": [{...}, ...]}'
        raise reader.refuse(f"a scenario has {what}", "rules")
    for key in content:
        if key not in ("rules", "schema"):
            raise reader.refuse(unknown("key", key, ["rules", "schema"]), key)
    return Scenario(reader, entries)


def _make(
    mischief: Mischief,
    about: str,
    values: Mapping[str, Any],
    when: Mapping[str, Any],
    things: list[Any],
) -> Rule:
    if about == "request":
        chosen = mischief.on_request(values.get("type"), gpa=values.get("gpa"), **when)
        return chosen.do(*things)
    if about == "config":
        field = values.get("field")
        if field is None:
            raise UsageError(f"a rule on config needs field: {', '.join(FIELDS)}")
        return mischief.on_config(field, **when).do(*things)
    return mischief.on_config_interrupt(**when).do(things[0])
