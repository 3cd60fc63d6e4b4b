"""`minivmm report`: what a trace says about resizes, as a page, figures, or JSON."""

from __future__ import annotations

import argparse
from pathlib import Path

from minivmm.cli.text import print_json, say
from minivmm.errors import ExitStatus, HostError


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("trace", metavar="TRACE", type=Path, help="file of `boot --trace`")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        help="page to write (default: TRACE with .html for its suffix)",
    )
    for kind in ("svg", "png"):
        parser.add_argument(
            f"--{kind}",
            metavar="DIR",
            type=Path,
            help=f"write figures for a paper to DIR as {kind.upper()}",
        )
    parser.add_argument("--json", action="store_true", help="print the resizes, write no page")


def run(args: argparse.Namespace) -> int:
    """Read the trace, write what was asked for."""
    from minivmm.report.story import read_story

    story = read_story(args.trace)
    if args.json:
        from minivmm.report.summary import summary

        print_json(summary(story))
    else:
        from minivmm.report.page import page

        target = args.output or args.trace.with_suffix(".html")
        _write(target, page(story))
        say(f"wrote {target}")
    for kind in ("svg", "png"):
        directory = getattr(args, kind)
        if directory is not None:
            from minivmm.report.plots import write_plots

            for path in write_plots(story, directory, [kind]):
                say(f"wrote {path}")
    return ExitStatus.OK


def _write(target: Path, text: str) -> None:
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise HostError(f"page {target} cannot be written: {error.strerror}") from None
