"""`minivmm matrix`: a suite of scenarios on kernels and device options, also against QEMU."""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from minivmm.cli.text import print_json, print_table, say
from minivmm.errors import ExitStatus, HostError, Interrupted, UsageError

if TYPE_CHECKING:
    from minivmm.matrix.plan import Plan
    from minivmm.matrix.results import Results

MOST_TOLERANCE = 1000.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.usage = (
        "minivmm matrix SUITE [--kernels LIST] [--device-options KEYS]... [--against qemu]"
        " [--out FILE]\n       minivmm matrix --compare OLD NEW [--tolerance X]\n"
        "       minivmm matrix --markdown FILE"
    )
    add = parser.add_argument
    add(
        "suite",
        nargs="?",
        metavar="SUITE",
        help="quick, policies, standard, or a Python file with scenarios (docs/matrix.md)",
    )
    add(
        "--kernels",
        metavar="LIST",
        help="releases of fetched kernels or files, separated by commas (default: the newest"
        " fetched)",
    )
    add(
        "--device-options",
        metavar="KEYS",
        action="append",
        default=[],
        help="options of the virtio-mem device (packed=on,event_idx=off); again: with others in"
        " turn, '' for none",
    )
    add("--against", metavar="VMM", help="the same on another VMM as well: qemu")
    add("--amount", metavar="SIZE", help="by how much guests grow (default: the suite's own)")
    add("--repeat", metavar="N", type=int, default=1, help="repeat each scenario N times")
    add("--out", metavar="FILE", type=Path, help="store the results in FILE, as JSON")
    add(
        "--resume",
        action="store_true",
        help="go on with the run in --out: cells that are missing or failed",
    )
    add(
        "--compare",
        nargs=2,
        metavar="FILE",
        type=Path,
        help="compare two results, the old one first; 1 if a cell fails that had passed",
    )
    add(
        "--tolerance",
        metavar="X",
        help="with --compare: 1 also if a figure is more than X times as bad (1.5)",
    )
    add("--markdown", metavar="FILE", type=Path, help="print results as tables in Markdown")
    add(
        "--accel",
        choices=("auto", "kvm", "lab"),
        default="auto",
        help="where to boot, as for `minivmm boot`",
    )
    add("--json", action="store_true", help="print one JSON object, not tables")


def run(args: argparse.Namespace) -> int:
    """Do one of the three; 1 if a cell fails."""
    ways = [args.suite is not None, args.compare is not None, args.markdown is not None]
    if sum(ways) != 1:
        raise UsageError("name a SUITE to run, or files by --compare or --markdown")
    if args.tolerance is not None and args.compare is None:
        raise UsageError("--tolerance is for --compare")
    if args.compare is not None:
        return _compare(args)
    if args.markdown is not None:
        from minivmm.matrix.results import read
        from minivmm.matrix.tables import markdown

        print(markdown(read(args.markdown)), end="")
        return ExitStatus.OK
    plan = _plan(args)
    if args.resume and args.out is None:
        raise UsageError("--resume needs --out: the file of the run to go on with")
    if args.out is not None:
        _check_writable(args.out)
    if _in_lab(args.accel):
        return _run_in_lab(args, plan)
    return _run_here(args, plan)


def _plan(args: argparse.Namespace) -> Plan:
    """What is to be run; complains about all that can be wrong."""
    from minivmm.guest.kernels import newest
    from minivmm.matrix.plan import make_plan
    from minivmm.matrix.suites import find_suite

    suite = find_suite(args.suite, args.amount)
    names = [name for name in (args.kernels or "").split(",") if name]
    if args.kernels is None:
        names = [newest().release]
    elif not names:
        raise UsageError(f"--kernels {args.kernels!r} names none")
    return make_plan(suite, names, args.device_options, args.against, args.repeat)


def _run_here(args: argparse.Namespace, plan: Plan) -> int:
    from minivmm.matrix.plan import about, continued, tracks
    from minivmm.matrix.results import Outcome, Results, read, write
    from minivmm.matrix.runner import TrackRun

    results = Results(about(plan))
    done = {}
    if args.resume and args.out.exists():
        old = read(args.out)
        results.made = continued(old.made, results.made, str(args.out))
        kept = [cell for cell in old.cells if cell.outcome is not Outcome.FAILED]
        done = {(cell.column, cell.scenario): cell for cell in kept}

    def store() -> None:
        """What is done, and what was done before and is yet to come."""
        if args.out is not None:
            write(args.out, replace(results, cells=[*results.cells, *done.values()]))

    try:
        with tempfile.TemporaryDirectory(prefix="minivmm-matrix-") as folder:
            for track in tracks(plan, Path(folder)):
                running = TrackRun(track, plan.suite, plan.repeat)
                try:
                    for scenario in plan.suite.scenarios:
                        before = done.pop((track.column, scenario.name), None)
                        results.cells.append(before or running.cell(scenario))
                        if before is None:
                            _progress(results)
                            store()
                finally:
                    running.close()
    except (KeyboardInterrupt, Interrupted) as error:
        results.interrupted = True
        say(f"{error or 'interrupted'}: {len(results.cells)} cells are done")
    store()
    _show(args, results)
    if results.interrupted:
        return ExitStatus.INTERRUPTED
    return ExitStatus.FAILED if results.failed else ExitStatus.OK


def _progress(results: Results) -> None:
    cell = results.cells[-1]
    why = f" ({cell.reason})" if cell.reason else ""
    say(f"{cell.column} {cell.scenario}: {cell.outcome} in {cell.seconds:.0f} s{why}")


def _show(args: argparse.Namespace, results: Results) -> None:
    from minivmm.matrix.results import to_json
    from minivmm.matrix.tables import rows

    if args.json:
        print_json(to_json(results))
    else:
        print_table(rows(results))


def _compare(args: argparse.Namespace) -> int:
    from minivmm.matrix.compare import compare, lines, to_json
    from minivmm.matrix.results import read

    tolerance = _tolerance(args.tolerance)
    old, new = args.compare
    found = compare(read(old), read(new))
    if args.json:
        print_json(to_json(found, tolerance))
    else:
        print("\n".join(lines(found, tolerance)))
    worse = [] if tolerance is None else found.worse_than(tolerance)
    return ExitStatus.FAILED if found.broken or worse else ExitStatus.OK


def _tolerance(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        raise UsageError(f"tolerance {text!r} is no number: write 1.5") from None
    if not 1.0 <= value <= MOST_TOLERANCE:
        raise UsageError(f"tolerance {text} is out of range: 1 to {MOST_TOLERANCE:.0f}, as 1.5")
    return value


def _check_writable(path: Path) -> None:
    """Complain now rather than after an hour."""
    try:
        with tempfile.TemporaryFile(dir=path.absolute().parent):
            pass
        if path.exists() and not path.is_file():
            raise HostError(f"cannot write {path}: it is no regular file")
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from None


def _in_lab(accel: str) -> bool:
    if accel != "auto":
        return accel == "lab"
    from minivmm.accel import probe

    found = probe()
    if not found.usable:
        say(f"{found.reason}: booting in the lab")
    return not found.usable


def _run_in_lab(args: argparse.Namespace, plan: Plan) -> int:
    """The same command line in the lab, which has this host's files."""
    from minivmm.cli.lab import run_words
    from minivmm.matrix.guest import PLAIN

    words = [args.suite]
    words += [] if args.kernels is None else [f"--kernels={args.kernels}"]
    words += [f"--device-options={text}" for text in args.device_options]
    words += [] if args.against is None else [f"--against={args.against}"]
    words += [] if args.amount is None else [f"--amount={args.amount}"]
    words += [] if args.out is None else [f"--out={args.out}"]
    words += ["--resume"] if args.resume else []
    words += [f"--repeat={args.repeat}", "--accel=kvm", *(["--json"] if args.json else [])]
    sys.stdout.flush()
    return run_words(["matrix", *words], PLAIN.memory + plan.suite.amount)
