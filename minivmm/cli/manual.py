"""The manual page minivmm(1), made from the parsers: `minivmm help man`, and scripts/man for docs/.

The text is man(7) markup. Nothing about verbs or options is written here a second time.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator

from minivmm.cli import main
from minivmm.errors import ExitStatus
from minivmm.machine_spec import DEVICE_TYPES
from minivmm.options import describe
from minivmm.version import __version__

_FILES = (
    ("$XDG_RUNTIME_DIR/minivmm/NAME/", "a running VM: its sockets, pid and spec.json, which"
     " `boot --config` boots again. Without XDG_RUNTIME_DIR it is in /tmp/minivmm-UID."),
    ("$XDG_CONFIG_HOME/minivmm/config.json", "the user's own defaults, in the form of spec.json"),
    ("$XDG_CACHE_HOME/minivmm/kernels/", "kernels that `minivmm kernel fetch` unpacked"),
)  # fmt: skip

_ENVIRONMENT = (
    ("MINIVMM_RUNTIME_DIR", "directory of running VMs, in place of the one below FILES"),
    ("NO_COLOR, TERM", "live views have no colours if the first is set or the second is `dumb`"),
)


def page(exit_codes: dict[ExitStatus, str]) -> str:
    """The whole page; `exit_codes` says what each status means."""
    lines = [
        f'.TH MINIVMM 1 "" "minivmm {__version__}" "User Commands"',
        ".SH NAME",
        "minivmm \\- boot Linux kernels under KVM, and grow and shrink their memory",
        ".SH SYNOPSIS",
        *_paragraph("minivmm VERB [options]"),
        ".SH VERBS",
        *_verbs(),
        ".SH DEVICES",
        *_paragraph("What --device takes, as DEVICE,KEY=VALUE,... A comma in a value is doubled."),
        *_devices(),
        ".SH EXIT STATUS",
        *_terms((str(int(status)), meaning) for status, meaning in exit_codes.items()),
        *_paragraph(
            "boot -- CMD, exec and lab otherwise end with CMD's own status (128 + number for"
            " signals)."
        ),
        ".SH FILES",
        *_terms(_FILES),
        ".SH ENVIRONMENT",
        *_terms(_ENVIRONMENT),
    ]
    return "\n".join(lines) + "\n"


def _verbs() -> Iterator[str]:
    for verb, about in main.VERBS.items():
        parser = main.Parser(prog=f"minivmm {verb}", description=about)
        main.module_of(verb).configure(parser)
        yield f".SS {_escape(verb)}"
        yield from _one(parser, about[0].upper() + about[1:] + ".")


def _one(parser: argparse.ArgumentParser, about: str) -> Iterator[str]:
    """Usage, purpose and arguments of a verb, and the same of the verbs inside it."""
    yield from _paragraph(parser.usage or _usage(parser), bold=True)
    yield from _paragraph(about)
    inner: list[tuple[str, argparse.ArgumentParser, str]] = []
    rows: list[tuple[str, str]] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            inner += [(name, sub, helps.get(name, "")) for name, sub in action.choices.items()]
        elif not isinstance(action, argparse._HelpAction) and action.help:
            rows.append((_term(action), action.help.replace("%%", "%")))
    yield from _terms(rows)
    if parser.epilog:
        yield from _paragraph(parser.epilog)
    for _, sub, line in inner:
        yield from _one(sub, line)


def _usage(parser: argparse.ArgumentParser) -> str:
    """The usage of a parser that has no text for it: its positional arguments."""
    words = [parser.prog]
    if any(one.option_strings and one.dest != "help" for one in parser._actions):
        words.append("[options]")
    for action in parser._actions:
        if not action.option_strings:
            name = _metavar(action)
            words.append(f"[{name}]" if action.nargs in ("?", "*") else name)
    return " ".join(words)


def _term(action: argparse.Action) -> str:
    """`-n, --name NAME`, or the name of a positional argument."""
    if not action.option_strings:
        return _metavar(action)
    value = "" if action.nargs == 0 else f" {_metavar(action)}"
    return ", ".join(action.option_strings) + value


def _metavar(action: argparse.Action) -> str:
    if isinstance(action.metavar, str):
        return action.metavar
    if action.choices is not None:
        return "|".join(map(str, action.choices))
    return action.dest.upper().replace("_", "-")


def _devices() -> Iterator[str]:
    for name, kind in DEVICE_TYPES.items():
        yield f".SS {_escape(name)}"
        yield from _terms(
            (f"{key}={info.kind}", f"{info.help} (default: {default})")
            for key, info, default in describe(kind)
        )


def _terms(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    for term, text in rows:
        yield ".TP"
        yield f".B {_escape(term)}"
        yield _escape(text)


def _paragraph(text: str, *, bold: bool = False) -> Iterator[str]:
    yield ".PP"
    yield f".B {_escape(text)}" if bold else _escape(text)


def _escape(text: str) -> str:
    """`text` as it stands: no character of it is markup."""
    plain = " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return f"\\&{plain}" if plain[:1] in (".", "'") else plain
