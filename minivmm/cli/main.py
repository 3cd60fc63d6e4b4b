"""The `minivmm` command: finds the verb, loads only what it needs, turns errors into exit statuses.

Options of a verb, and what it does, are in the verb's own module: `configure(parser)` and
`run(args)`, where `args.command` is what followed `--`. Nothing slow may be imported here.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from types import FrameType
from typing import Any, NoReturn

from minivmm.cli.loading import loading
from minivmm.errors import ExitStatus, Interrupted, MinivmmError, UsageError
from minivmm.version import __version__

VERBS = {
    "boot": "boot a kernel, and run a command in it or a shell on its console",
    "list": "list running VMs",
    "info": "show a VM's memory: requested, plugged, resident",
    "resize": "set how much memory a VM should have plugged",
    "wait": "wait until a VM is resized, ready, or gone",
    "why": "say why a VM has, or has not, the memory asked for",
    "kick": "make a VM's memory driver try again at once",
    "top": "watch and steer a VM's memory live, in the terminal",
    "ui": "the same as a web page: serve it, and print its address",
    "trace": "follow what a VM does, event by event, or read a trace file",
    "inspect": "show the state of all parts of a VM, or of one",
    "snapshot": "save a VM into a directory, or check such a directory",
    "qmp": "send a QMP command, or a line of the human monitor",
    "audit": "prove that memory not plugged costs the host nothing",
    "console": "watch a VM's console, and type at it",
    "exec": "run a command in a VM",
    "matrix": "run scenarios on kernels and device options, compare with QEMU and before",
    "replay": "try a recorded driver on the device model, without a guest",
    "report": "make a page, or figures, of what a trace says about resizes",
    "migrate": "move a running VM to another process, here or on another host",
    "stop": "end a VM",
    "kernel": "fetch stock kernels, list those fetched",
    "lab": "run a command where /dev/kvm can run stock kernels",
    "doctor": "check what this host can do, and name cures",
    "completion": "print a script that completes command lines in bash, zsh or fish",
    "help": "show this, the help of a verb, or the exit codes",
}
"""Verb -> one line of help; its module is minivmm.cli.VERB (exec, list: with a trailing `_`)."""

BOOT_FAMILY = {"boot", "lab", "exec"}
"""Verbs whose exit status is that of a command they run; their own failures are 124 and above."""

TAKES_WORDS = BOOT_FAMILY | {"completion"}
"""Verbs with something behind `--`."""


class Parser(argparse.ArgumentParser):
    """An argument parser that complains like everything else here: by raising UsageError."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse with what is wrong."""
        raise UsageError(f"{message} (see `{self.prog} --help`)")


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's) and return the exit status."""
    try:
        return _run(argv)
    except KeyboardInterrupt:  # so early or so late that no verb was at work
        return Interrupted.control_status


def _run(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    _open_standard_streams()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, _on_signal)
    verb = verb_of(words)
    debug = "--debug" in own_words(words)
    try:
        return _run_verb(words)
    except MinivmmError as error:
        if debug:
            raise
        _complain(str(error))
        return error.boot_status if verb in BOOT_FAMILY else error.control_status
    except KeyboardInterrupt:
        if debug:
            raise
        _complain("interrupted")
        return Interrupted.control_status
    except BrokenPipeError:
        # The reader of our output left; without this the interpreter complains when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return ExitStatus.FAILED
    except Exception as error:  # not foreseen: a full disk, too little memory, a bug
        if debug:
            raise
        kind = "" if isinstance(error, OSError) else f"internal error: {type(error).__name__}: "
        _complain(f"{kind}{error} (--debug shows where)")
        return ExitStatus.MINIVMM_FAILED if verb in BOOT_FAMILY else ExitStatus.FAILED


def parser_for(words: Sequence[str]) -> argparse.ArgumentParser:
    """The argument tree, in which only the verb of `words` has its options."""
    parser = Parser(
        prog="minivmm",
        description="Boot Linux kernels under KVM, and grow and shrink their memory.",
        epilog="`minivmm VERB --help` shows the options of a verb, `minivmm help exit-codes` what"
        " exit statuses mean.",
    )
    parser.add_argument("--version", action="version", version=f"minivmm {__version__}")
    _add_debug(parser, default=False)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    chosen = verb_of(words)
    for name, line in VERBS.items():
        sub = verbs.add_parser(name, help=line, description=line[0].upper() + line[1:] + ".")
        if name == chosen:
            _add_debug(sub, default=argparse.SUPPRESS)
            module_of(name).configure(sub)
    return parser


def verb_of(words: Sequence[str]) -> str | None:
    """The verb that `words` name, if any."""
    return next((word for word in own_words(words) if not word.startswith("-")), None)


def own_words(words: Sequence[str]) -> list[str]:
    """The part of a command line before `--`."""
    words = list(words)
    return words[: words.index("--")] if "--" in words else words


def _run_verb(words: list[str]) -> int:
    own = own_words(words)
    command = words[len(own) + 1 :]
    verb = verb_of(words)
    parser = parser_for(words)
    if verb in VERBS:
        module = module_of(verb)
        own = module.prepare(own) if hasattr(module, "prepare") else own
        if len(own) < len(words) and verb not in TAKES_WORDS:
            parser.error(f"{verb} takes no command after --")
    if verb is not None and verb not in VERBS:
        raise UsageError(_unknown("verb", verb, VERBS))
    args, rest = parser.parse_known_args(own)
    if rest:
        raise UsageError(_unexpected(verb, rest[0]))
    args.command = command
    status: int = module_of(args.verb).run(args)
    if sys.stdout is not None:
        sys.stdout.flush()
    return status


def _unexpected(verb: str | None, word: str) -> str:
    """One line for a word that is no option of `verb`, nor another thing that it takes."""
    if not word.startswith("-"):
        return f"{verb} does not take {word!r} (see `minivmm {verb} --help`)"
    parser = argparse.ArgumentParser(add_help=False)
    module_of(str(verb)).configure(parser)
    options = [name for name in parser._option_string_actions if name.startswith("--")]
    return _unknown(f"option of {verb}", word.partition("=")[0], options)


def _unknown(what: str, name: str, valid: Iterable[str]) -> str:
    from minivmm.options import unknown  # slow to load, and seldom needed

    return unknown(what, name, list(valid))


def _complain(text: str) -> None:
    """One line on stderr, whatever names the user gave to things."""
    print("minivmm: " + text.replace("\n", "\\n"), file=sys.stderr)


def _open_standard_streams() -> None:
    """Give 0, 1 and 2 to /dev/null if they are closed, or the next file opened would be one."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def module_of(verb: str) -> Any:
    """The module of a verb of VERBS."""
    suffix = "_" if verb in ("exec", "list", "help") else ""
    with loading():
        return importlib.import_module(f"minivmm.cli.{verb}{suffix}")


def _add_debug(parser: argparse.ArgumentParser, *, default: object) -> None:
    parser.add_argument(
        "--debug", action="store_true", default=default, help="show tracebacks of errors"
    )


def _on_signal(number: int, frame: FrameType | None) -> None:
    raise Interrupted(f"ended by {signal.Signals(number).name}")
