"""Lines of the human monitor that do something; those that only tell are in hmp_info.py."""

from __future__ import annotations

import json
from collections.abc import Callable

from minivmm.control import balloon, qom
from minivmm.control.commands import COMMANDS
from minivmm.control.face import Context
from minivmm.control.hmp_line import BadLine, Line
from minivmm.control.hmp_migration import LINES as MIGRATION
from minivmm.errors import Refused, UsageError
from minivmm.units import MIB, parse_size


def _qmp(name: str) -> Callable[[Context], list[str]]:
    """The QMP command `name`, which takes and returns nothing."""

    def run(context: Context) -> list[str]:
        COMMANDS[name].run(context, {})
        return []

    return run


def _balloon(context: Context, target: str) -> list[str]:
    """As QEMU's monitor reads it: a number without a unit is in MiB."""
    try:
        size = int(target) * MIB if target.isdecimal() else parse_size(target)
    except UsageError:
        raise BadLine(f"invalid char '{target[0]}' in expression") from None
    balloon.set_balloon(context, size)
    return []


def _qom_get(context: Context, path: str, name: str) -> list[str]:
    return [json.dumps(qom.qom_get(context.machine, path, name))]


def _qom_list(context: Context, path: str = "/") -> list[str]:
    return [f"{row['name']} ({row['type']})" for row in qom.qom_list(context.machine, path)]


def _qom_set(context: Context, path: str, name: str, text: str, *, flag: bool = False) -> list[str]:
    """`flag`: the value is JSON, and is taken as it is."""
    if flag:
        try:
            value: object = json.loads(text)
        except ValueError:
            raise Refused(f"JSON parse error, {text!r} is no value") from None
    else:
        value = _value(name, text)
    qom.qom_set(context.machine, path, name, value)
    return []


def _value(name: str, text: str) -> object:
    """Sizes with suffixes, numbers; what else there is are texts."""
    try:
        return parse_size(text)
    except UsageError:
        if name == "requested-size":
            raise
        return text


LINES = (
    Line(("balloon",), "ask the guest to leave itself so many MiB", _balloon, ("target",)),
    Line(("cont", "c"), "let the machine run on", _qmp("cont")),
    Line(("qom-get",), "show a property", _qom_get, ("path", "property")),
    Line(("qom-list",), "list properties and children of an object", _qom_list, ("[path]",)),
    Line(
        ("qom-set",),
        "set a property; -j: the value is JSON",
        _qom_set,
        ("path", "property", "value"),
        flag="-j",
    ),
    Line(("quit", "q"), "end the machine at once", _qmp("quit")),
    Line(("stop", "s"), "pause the machine", _qmp("stop")),
    Line(("system_powerdown",), "press the power button", _qmp("system_powerdown")),
    Line(("system_reset",), "reset the machine", _qmp("system_reset")),
    *MIGRATION,
)
