"""The human monitor: a line in, text with \\r\\n out, for `qmp-shell -H`, Ctrl-A c and old scripts.

How lines are read, refused and explained is here, worded as QEMU does; what they do is in
hmp_lines.py and hmp_info.py, in terms of the QMP commands.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from minivmm.control.commands import command
from minivmm.control.face import Context
from minivmm.control.hmp_info import INFO
from minivmm.control.hmp_line import BadLine, Line
from minivmm.control.hmp_lines import LINES
from minivmm.errors import MinivmmError


@command("human-monitor-command")
def human_monitor_command(context: Context, command_line: str, cpu_index: int | None = None) -> str:
    """Run one monitor line; what goes wrong is in the text. No line is about one CPU."""
    return "".join(f"{line}\r\n" for line in execute(context, command_line))


def execute(context: Context, text: str) -> list[str]:
    """What the monitor line `text` prints."""
    try:
        words = shlex.split(text)
    except ValueError:  # a quote that is not closed: the argument is missing, as QEMU sees it
        words = text.partition('"')[0].split()
    if not words:
        return []
    first, *rest = words
    if first in ("help", "?"):
        return _help(rest)
    prefix = ""
    table: Iterable[Line] = LINES
    if first == "info":
        if not rest:
            return list(_explain(INFO, "info "))
        first, *rest = rest
        prefix, table = "info ", INFO
    line = _find(table, first)
    if line is None:
        return [f"unknown command: '{prefix}{first}'"]
    try:
        return list(line.run(context, rest))
    except BadLine as error:
        return [str(error), f'Try "help {prefix}{line.names[0]}" for more information']
    except MinivmmError as error:
        return [f"Error: {error}"]


def _help(words: list[str]) -> list[str]:
    if not words:
        yours = ["help|? [cmd] -- show this, or the help of a command"]
        return [*yours, *_explain(LINES, ""), "info [topic] -- show how something is"]
    if words[0] == "info":
        shown = INFO if len(words) == 1 else [line for line in INFO if words[1] in line.names]
        return list(_explain(shown, "info ")) or [f"unknown command: 'info {words[1]}'"]
    line = _find(LINES, words[0])
    return [f"unknown command: '{words[0]}'"] if line is None else list(_explain([line], ""))


def _explain(lines: Iterable[Line], prefix: str) -> Iterable[str]:
    return (prefix + line.usage for line in sorted(lines, key=lambda line: line.names))


def _find(table: Iterable[Line], name: str) -> Line | None:
    return next((line for line in table if name in line.names), None)
