"""What may come next on a `minivmm` command line: verbs, options, and what running VMs have.

    complete("minivmm resize vm1 --dev") -> [Candidate("--device", "memory device, ...")]

Parsers are asked for what they know; the rest, by the name of the argument, is in _VALUES.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minivmm import runtime
from minivmm.cli import main
from minivmm.control.client import Client
from minivmm.errors import MinivmmError

_FILE_NAMES = ("FILE", "DIR", "PATH", "OUT")
"""What arguments are called whose values are files."""

PATIENCE = 1.0
"""Seconds that a VM may take to answer; nobody waits longer for a TAB."""


@dataclass(frozen=True)
class Candidate:
    """A word that could stand there, and a few words about it. One that ends in = or , goes on."""

    text: str
    help: str = ""


FILES = Candidate(":files")
"""In the place of candidates: any file, which the shell completes itself."""


@dataclass(frozen=True)
class Line:
    """What is typed so far: the verb, the words behind it, and the word that is being completed."""

    verb: str
    words: tuple[str, ...]
    word: str


Values = Callable[[Line], Iterable[Candidate]]


def complete(text: str) -> list[Candidate]:
    """Candidates for the last word of the command line `text`, which begins with the command."""
    words = _split(text)
    *done, word = words[1:] if len(words) > 1 else [""]
    verb = main.verb_of(done)
    if verb is None:
        found: Iterable[Candidate] = _verbs(word)
    elif verb not in main.VERBS:
        found = []
    elif "--" in done:
        found = [FILES]
    else:
        after = tuple(done[done.index(verb) + 1 :])
        found = _after_verb(Line(verb, after, word))
    found = list(found)
    return found if FILES in found else [one for one in found if one.text.startswith(word)]


def _split(text: str) -> list[str]:
    """Words as the shell would make them; an open quote is taken as closed at the end."""
    try:
        words = shlex.split(text)
    except ValueError:
        words = text.split()
    return [*words, ""] if text[-1:].isspace() or not words else words


def _verbs(word: str) -> Iterator[Candidate]:
    if word.startswith("-"):
        yield from (Candidate(option) for option in ("--help", "--version", "--debug"))
    else:
        yield from (Candidate(verb, help) for verb, help in main.VERBS.items())


def _after_verb(line: Line) -> Iterable[Candidate]:
    parser = main.Parser(prog=line.verb, add_help=True)
    main.module_of(line.verb).configure(parser)
    options = {name: one for one in parser._actions for name in one.option_strings}
    name, equals, _ = line.word.partition("=")
    if equals and name in options:
        values = _values(options[name], Line(line.verb, line.words, line.word[len(name) + 1 :]))
        return (
            one if one == FILES else Candidate(f"{name}={one.text}", one.help) for one in values
        )
    last = options.get(line.words[-1]) if line.words else None
    if last is not None and last.nargs != 0:
        return _values(last, line)
    if line.word.startswith("-"):
        return _options(options)
    positionals = [one for one in parser._actions if not one.option_strings]
    taken = len(_plain(line, options))
    if not positionals:
        return []
    return _values(positionals[min(taken, len(positionals) - 1)], line)


def _options(options: dict[str, argparse.Action]) -> Iterator[Candidate]:
    for name, action in options.items():
        if name.startswith("--"):
            yield Candidate(name, action.help or "")


def _plain(line: Line, options: dict[str, argparse.Action]) -> list[str]:
    """The words that are neither options nor their values."""
    found: list[str] = []
    words = iter(line.words)
    for word in words:
        action = options.get(word)
        if action is not None and action.nargs != 0:
            next(words, None)
        elif not word.startswith("-"):
            found.append(word)
    return found


def _values(action: argparse.Action, line: Line) -> Iterable[Candidate]:
    if action.choices is not None:
        return [Candidate(str(choice)) for choice in action.choices]
    if action.type is Path or action.metavar in _FILE_NAMES:
        return [FILES]
    sources: dict[str, Values] = importlib.import_module("minivmm.cli.completing_values").VALUES
    name = action.option_strings[-1] if action.option_strings else action.dest
    source = sources.get(f"{line.verb} {name}") or sources.get(name)
    return source(line) if source else []


def machines(line: Line) -> Iterator[Candidate]:
    """Names of running VMs."""
    return (Candidate(entry.name, "running VM") for entry in runtime.running())


def ask(line: Line, command: str, **arguments: object) -> Any:
    """The answer of the VM that the line is about; None if that cannot be had at once."""
    running = {entry.name: entry for entry in runtime.running()}
    named = [running[word] for word in line.words if word in running]
    entries: Sequence[runtime.MachineDir] = named or list(running.values())
    if len(named) != 1 and len(running) != 1:
        return None
    try:
        with Client(entries[0].qmp_socket, timeout=PATIENCE) as client:
            return client.execute(command, **arguments)
    except MinivmmError:
        return None
