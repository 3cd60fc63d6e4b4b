"""A few commands of QEMU's human monitor, for `qmp-shell -H` and scripts that use them.

Lines in, text with \\r\\n out. They are spelled in terms of the QMP commands of commands.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minivmm.control import balloon, commands, qom
from minivmm.control.face import Context
from minivmm.errors import MinivmmError, UsageError
from minivmm.units import MIB, parse_size

_STATES = {"running": "running", "paused": "paused"}


@commands.command("human-monitor-command", command_line="string", optional={"cpu-index": "integer"})
def human_monitor_command(context: Context, command_line: str, cpu_index: int = 0) -> object:
    """Run one monitor line; what goes wrong is in the text, as in QEMU."""
    words = command_line.split()
    if not words:
        return ""
    if words[0] == "info" and len(words) > 1:
        words = [" ".join(words[:2]), *words[2:]]
    known = _TABLE.get(words[0])
    if known is None:
        return f"unknown command: '{words[0]}'\r\n"
    parameters, function = known
    if len(words) - 1 != len(parameters):
        usage = " ".join([words[0], *parameters])
        return f"{words[0]}: expected: {usage}\r\n"
    try:
        lines = function(context, *words[1:])
    except MinivmmError as error:
        return f"Error: {error}\r\n"
    return "".join(f"{line}\r\n" for line in lines)


def _help(context: Context) -> list[str]:
    return [" ".join([name, *parameters]) for name, (parameters, _) in _TABLE.items()]


def _info(context: Context) -> list[str]:
    return [line for line in _help(context) if line.startswith("info ")]


def _info_status(context: Context) -> list[str]:
    if context.machine.state in _STATES:
        return [f"VM status: {_STATES[context.machine.state]}"]
    return [f"VM status: paused ({context.machine.state})"]


def _info_name(context: Context) -> list[str]:
    return [context.machine.name]


def _info_version(context: Context) -> list[str]:
    numbers = commands.QEMU_VERSION
    package = commands.version()["package"]
    return [f"{numbers['major']}.{numbers['minor']}.{numbers['micro']} ({package})"]


def _info_balloon(context: Context) -> list[str]:
    return [f"balloon: actual={balloon.query_balloon(context)['actual'] // MIB}"]


def _balloon(context: Context, target: str) -> list[str]:
    """As QEMU's monitor reads it: a number without a unit is in MiB."""
    size = int(target) * MIB if target.isdecimal() else parse_size(target)
    balloon.set_balloon(context, size)
    return []


def _info_memory_devices(context: Context) -> list[str]:
    lines: list[str] = []
    entries: list[dict[str, Any]] = commands.query_memory_devices(context)
    for entry in entries:
        data = entry["data"]
        lines += [
            f'Memory device [{entry["type"]}]: "{data["id"]}"',
            f"  memaddr: {data['memaddr']:#x}",
            *(
                f"  {key}: {data[key]}"
                for key in ("node", "requested-size", "size", "max-size", "block-size", "memdev")
            ),
        ]
    return lines


def _info_memory_size_summary(context: Context) -> list[str]:
    plugged = sum(device.plugged_size for device in context.machine.memory_devices.values())
    return [f"base memory: {context.machine.boot_memory}", f"plugged memory: {plugged}"]


def _info_numa(context: Context) -> list[str]:
    """QEMU hw/core/machine-hmp-cmds.c: the size of a node includes what is plugged there."""
    machine = context.machine
    lines = [f"{len(machine.numa.nodes)} nodes"]
    for number, node in enumerate(machine.numa.nodes):
        devices = (one for one in machine.memory_devices.values() if one.spec.node == number)
        plugged = sum(device.plugged_size for device in devices)
        lines += [
            " ".join([f"node {number} cpus:", *map(str, node.cpus)]),
            f"node {number} size: {(node.memory + plugged) // MIB} MB",
            f"node {number} plugged: {plugged // MIB} MB",
        ]
    return lines


def _qom_get(context: Context, path: str, name: str) -> list[str]:
    value = qom.qom_get(context.machine, path, name)
    return [f'"{value}"' if isinstance(value, str) else str(value)]


def _qom_set(context: Context, path: str, name: str, text: str) -> list[str]:
    try:
        value: object = parse_size(text)
    except UsageError:
        if name == "requested-size":
            raise
        value = text
    qom.qom_set(context.machine, path, name, value)
    return []


def _qmp(name: str) -> Callable[[Context], list[str]]:
    """The QMP command `name`, which takes and returns nothing."""

    def run(context: Context) -> list[str]:
        commands.COMMANDS[name].run(context, {})
        return []

    return run


_TABLE: dict[str, tuple[tuple[str, ...], Callable[..., list[str]]]] = {
    "help": ((), _help),
    "info": ((), _info),
    "balloon": (("target",), _balloon),
    "info balloon": ((), _info_balloon),
    "info memory-devices": ((), _info_memory_devices),
    "info memory_size_summary": ((), _info_memory_size_summary),
    "info name": ((), _info_name),
    "info numa": ((), _info_numa),
    "info status": ((), _info_status),
    "info version": ((), _info_version),
    "qom-get": (("path", "property"), _qom_get),
    "qom-set": (("path", "property", "value"), _qom_set),
    **{name: ((), _qmp(name)) for name in ("stop", "cont", "system_reset", "system_powerdown")},
    "quit": ((), _qmp("quit")),
}
"""Monitor line's first word(s) -> its parameters and what it does; the lines it prints."""
