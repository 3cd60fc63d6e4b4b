"""`minivmm qmp`: one QMP command, its arguments as key=value, or one line of the human monitor."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Iterable
from typing import Any

from minivmm import runtime
from minivmm.cli.text import add_json, print_json
from minivmm.control.client import Client
from minivmm.errors import Refused, UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.usage = "minivmm qmp [NAME] COMMAND [KEY=VALUE...] | [NAME] --hmp LINE"
    parser.epilog = (
        'VALUE is JSON if it can be, else a text; a.b=1 is {"a": {"b": 1}}. Sizes are bytes:'
        " QMP knows no suffixes. `minivmm qmp query-commands` lists commands, `--hmp help` lines."
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="[NAME] COMMAND KEY=VALUE",
        help="the VM (optional if only one runs), the command, its arguments",
    )
    parser.add_argument("--hmp", metavar="LINE", help='human monitor instead: --hmp "info pci"')
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print what the VM answers: JSON, indented for people, or the monitor's text."""
    name, command, arguments = parse(args.words, monitor=args.hmp is not None)
    if args.hmp is not None:
        command, arguments = "human-monitor-command", {"command-line": args.hmp}
    entry = runtime.find(name)
    with Client(entry.qmp_socket) as client:
        try:
            answer = client.request(command, arguments)
        except Refused as error:
            hint = _nearest(client, command) if error.error_class == "CommandNotFound" else ""
            raise Refused(f"{command}: {error}{hint}", error.error_class) from None
    if args.json:
        print_json({"name": entry.name, "return": answer})
    elif args.hmp is not None:
        print(answer.replace("\r\n", "\n"), end="")
    else:
        print(json.dumps(answer, indent=2))
    return 0


def parse(words: Iterable[str], *, monitor: bool) -> tuple[str | None, str, dict[str, Any]]:
    """VM name if given, command, arguments. Raises UsageError."""
    plain: list[str] = []
    arguments: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if equals:
            _put(arguments, word, key.split("."), value)
        elif arguments:
            raise UsageError(f"argument {word!r} is not KEY=VALUE")
        else:
            plain.append(word)
    if monitor:
        if arguments or len(plain) > 1:
            raise UsageError("--hmp takes the whole line, in quotes, and at most the VM beside it")
        return (plain[0] if plain else None), "", {}
    if not plain:
        raise UsageError("qmp needs a command: minivmm qmp [NAME] COMMAND [KEY=VALUE...]")
    if len(plain) > 2:
        raise UsageError(f"argument {plain[2]!r} is not KEY=VALUE")
    return (plain[0] if len(plain) == 2 else None), plain[-1], arguments


def _put(arguments: dict[str, Any], word: str, keys: list[str], text: str) -> None:
    """Set the value at the path `keys`; objects on the way are made."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    inside = arguments
    for key in keys[:-1]:
        inside = inside.setdefault(key, {})
        if not isinstance(inside, dict):
            raise UsageError(f"argument {word!r}: {key} has a value already")
    if not all(keys) or keys[-1] in inside:
        raise UsageError(f"argument {word!r}: the key is empty, or was given before")
    inside[keys[-1]] = value


def _nearest(client: Client, command: str) -> str:
    names = [row["name"] for row in client.execute("query-commands")]
    near = difflib.get_close_matches(command, names, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
