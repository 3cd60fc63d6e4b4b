"""`minivmm inspect`: the live tree of a VM, or the part of it at a path."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence

from minivmm import runtime
from minivmm.cli.text import add_json, print_json
from minivmm.control.client import Client
from minivmm.errors import UsageError

SHOWN = 32
"""Longest list that is shown whole, unless its own path was asked for."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.usage = "minivmm inspect [NAME] [PATH] [--json]"
    parser.add_argument(
        "words",
        nargs="*",
        metavar="[NAME] [PATH]",
        help="the VM (optional if only one runs), and a part such as board.devices.vmem0",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the tree, indented, as JSON with --json."""
    if len(args.words) > 2:
        raise UsageError(f"inspect takes [NAME] [PATH], not {' '.join(args.words)!r}")
    name, path = choose(args.words)
    entry = runtime.find(name)
    with Client(entry.qmp_socket) as client:
        tree = client.execute("x-minivmm-inspect", path=path)
    if args.json:
        print_json({"name": entry.name, "path": path, "tree": tree})
    else:
        for line in lines(tree, whole=bool(path)):
            print(line)
    return 0


def choose(words: Sequence[str]) -> tuple[str | None, str]:
    """VM and path; one word alone is the VM if there is one of that name."""
    if len(words) == 2:
        return words[0], words[1]
    if not words:
        return None, ""
    named = any(entry.name == words[0] for entry in runtime.running())
    return (words[0], "") if named else (None, words[0])


def lines(node: object, *, whole: bool, indent: str = "") -> Iterator[str]:
    """`node` as indented lines; with `whole` its own list is not shortened."""
    if isinstance(node, Mapping):
        for key, child in node.items():
            yield from _entry(f"{indent}{key}:", child, indent)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        hidden = 0 if whole else max(0, len(node) - SHOWN)
        if hidden:
            yield f"{indent}(and {hidden} before these: ask for this path alone to see them)"
        for child in node[hidden:]:
            yield from _entry(f"{indent}-", child, indent)
    else:
        yield f"{indent}{_word(node)}"


def _entry(label: str, child: object, indent: str) -> Iterator[str]:
    """A child: on the line of its label if it is a single value, below it if it is not."""
    if child and not isinstance(child, str) and isinstance(child, Mapping | Sequence):
        yield label
        yield from lines(child, whole=False, indent=f"{indent}  ")
    else:
        yield f"{label} {_word(child)}"


def _word(value: object) -> str:
    """A value as people write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value == "" or value == [] or value == {}:
        return "-"
    return str(value)
