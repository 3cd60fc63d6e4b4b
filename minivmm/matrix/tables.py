"""Results as tables: for terminals a row for each cell, in Markdown kernels side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from minivmm.matrix.figures import middle, shown, summary
from minivmm.matrix.results import Cell, Column, Leaks, Outcome, Results
from minivmm.units import KIB, MIB, format_size

HEADING = ("KERNEL", "VMM", "OPTIONS", "SCENARIO", "OUTCOME", "FIGURES", "LEAKS")

PARTS = (
    ("Growing, seconds per GiB", "grow-seconds-per-gib"),
    ("Shrinking, seconds per GiB", "shrink-seconds-per-gib"),
    ("Unplugged, of what was asked back", "unplugged-fraction"),
    ("Memory blocks in ZONE_MOVABLE", "movable-fraction"),
    ("MemTotal's gain, of what was plugged", "gain-fraction"),
    ("Until a guest runs commands again", "reboot-seconds"),
    ("Until the next kernel runs commands", "kexec-seconds"),
)
"""Heading and figure of each table in Markdown."""

Show = Callable[[Cell], str]


def rows(results: Results) -> Iterator[Sequence[str]]:
    """A heading and a row for each cell, for print_table."""
    yield HEADING
    for cell in results.cells:
        column = cell.column
        text = summary(cell.figures)
        if cell.reason:
            text = f"{cell.reason}; {text}" if text else cell.reason
        yield (
            column.kernel,
            column.vmm,
            column.options or "-",
            cell.scenario,
            str(cell.outcome),
            text or "-",
            "-" if cell.leaks is None else _leaks(cell.leaks),
        )


def markdown(results: Results) -> str:
    """All of it in Markdown: what was run, tables of figures, boot cost, outcomes and leaks."""
    columns = list(dict.fromkeys(cell.column for cell in results.cells))
    parts = [_about(results), _outcomes(results, columns)]
    for heading, figure in PARTS:
        parts.append(_table(results, columns, heading, partial(_figure, figure)))
    parts.append(_boots(results, columns))
    parts.append(
        _table(results, columns, "The host's pace: seconds for a fixed piece of work",
               lambda cell: f"{cell.pace:.2f}")
    )  # fmt: skip
    parts.append(
        _table(results, columns, "Left behind: files, threads, growth of the VMM, memory held",
               lambda cell: "" if cell.leaks is None else _leaks(cell.leaks))
    )  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _about(results: Results) -> str:
    made = results.made
    host = made["host"]
    kernels = ", ".join(f"{name} is {release}" for name, release in made["kernels"].items())
    where = "in the lab, where all is emulated" if host["lab"] else "on a host with KVM"
    peer = f" and QEMU {made['qemu']}" if made["qemu"] else ""
    times = "once" if made["repeat"] == 1 else f"{made['repeat']} times"
    rest = " It was interrupted." if results.interrupted else ""
    return (
        f"Suite `{made['suite']}`, each scenario {times}, {made['when']}: minivmm"
        f" {made['minivmm']}{peer} {where} ({host['cpus']} CPU, Linux {host['kernel']}). Guests"
        f" have {format_size(made['memory'])} and grow by {format_size(made['amount'])}."
        f" {kernels}.{rest}"
    )


def _outcomes(results: Results, columns: Sequence[Column]) -> str:
    table = _table(results, columns, "Outcome", lambda cell: str(cell.outcome))
    told = [
        f"* {cell.column} {cell.scenario}, {cell.outcome}: {cell.reason}"
        for cell in results.cells
        if cell.outcome is not Outcome.PASSED
    ]
    return "\n\n".join([table, "\n".join(dict.fromkeys(told))] if told else [table])


def _boots(results: Results, columns: Sequence[Column]) -> str:
    """A row for each column: boots are measured by one scenario."""
    told = []
    for column in columns:
        found = [cell for cell in results.cells if cell.column == column]
        figures = {name: values for cell in found for name, values in cell.figures.items()}
        if "boot-with-seconds" not in figures or "boot-without-seconds" not in figures:
            continue
        words = [str(column)]
        for kind in ("seconds", "exits"):
            pair = [figures.get(f"boot-{word}-{kind}", []) for word in ("with", "without")]
            words += [shown(f"-{kind}", values) if values else "" for values in pair]
            cost = middle(pair[0]) - middle(pair[1]) if all(pair) else None
            words.append("" if cost is None else f"{cost:+.{1 if kind == 'seconds' else 0}f}")
        told.append(words)
    if not told:
        return ""
    heading = ["", "with device", "without", "cost, s", "exits with", "without", "cost"]
    return f"### Boot\n\n{_lines([heading, *told])}"


def _table(results: Results, columns: Sequence[Column], heading: str, show: Show) -> str:
    """A row for each scenario that has something to show, a column for each column."""
    cells = {(cell.scenario, cell.column): cell for cell in results.cells}
    names = dict.fromkeys(cell.scenario for cell in results.cells)
    told = []
    for name in names:
        found = [cells.get((name, column)) for column in columns]
        words = ["" if cell is None else show(cell) for cell in found]
        if any(words):
            told.append([name, *words])
    if not told:
        return ""
    return f"### {heading}\n\n{_lines([['', *map(str, columns)], *told])}"


def _lines(table: Sequence[Sequence[str]]) -> str:
    heading, *body = table
    rule = ["---"] * len(heading)
    return "\n".join(f"| {' | '.join(row)} |" for row in (heading, rule, *body))


def _figure(name: str, cell: Cell) -> str:
    values = cell.figures.get(name)
    return shown(name, values).replace(" s/GiB", "") if values else ""


def _leaks(leaks: Leaks) -> str:
    """Four numbers, or what of them is not 0."""
    parts = [f"{leaks.fds:+d} fds"] if leaks.fds else []
    parts += [f"{leaks.threads:+d} threads"] if leaks.threads else []
    parts += [f"{leaks.resident / MIB:+.1f}M"] if abs(leaks.resident) >= 100 * KIB else []
    parts += [f"{format_size(leaks.held)} held"] if leaks.held else []
    return ", ".join(parts) or "none"
