"""`minivmm help`: the command's help, a verb's, or the table of exit codes."""

from __future__ import annotations

import argparse

from minivmm.cli import main
from minivmm.cli.text import print_table
from minivmm.errors import ExitStatus, UsageError

EXIT_CODES = {
    ExitStatus.OK: "done",
    ExitStatus.FAILED: "control verbs: refused or failed",
    ExitStatus.USAGE: "control verbs: an option or size is not acceptable",
    ExitStatus.NOT_RUNNING: "control verbs: no such VM, or it is not running",
    ExitStatus.WAIT_TIMEOUT: "control verbs: --wait gave up",
    ExitStatus.TIMEOUT: "boot, lab, exec: --timeout fired",
    ExitStatus.MINIVMM_FAILED: "boot, lab, exec: minivmm itself failed: usage, no KVM, bad kernel",
    ExitStatus.INTERRUPTED: "Ctrl-C, SIGTERM, or stopped from outside",
    ExitStatus.GUEST_DIED: "boot: the guest panicked, crashed, or never became ready",
}
"""What each status means; `boot`, `exec` and `lab` otherwise end with their command's status."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument(
        "topic",
        nargs="?",
        metavar="VERB|exit-codes|man",
        help="what to explain (default: all verbs); man: the whole manual page, to pipe into"
        " `man -l -`",
    )


def run(args: argparse.Namespace) -> int:
    """Print the topic's help."""
    if args.topic == "exit-codes":
        rows = [(str(int(status)), meaning) for status, meaning in EXIT_CODES.items()]
        print_table([("STATUS", "MEANING"), *rows])
        print("boot -- CMD, exec, lab: otherwise CMD's own status (128 + number for signals)")
        return 0
    if args.topic == "man":
        from minivmm.cli.manual import page

        print(page(EXIT_CODES), end="")
        return 0
    if args.topic is None:
        main.parser_for([]).print_help()
        return 0
    if args.topic not in main.VERBS:
        raise UsageError(
            f"no help for {args.topic!r}: topics are exit-codes, man, {', '.join(main.VERBS)}"
        )
    return main.run([args.topic, "--help"])
