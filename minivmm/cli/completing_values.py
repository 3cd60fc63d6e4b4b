"""Where the words of completion come from, by the argument that they are for.

What knows devices and kernels is loaded only to complete those: most TABs are for other words, and
nobody wants to wait for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from minivmm.cli import main
from minivmm.cli.completing import FILES, Candidate, Line, Values, ask, machines

_NUMA = {
    "node": {"nodeid": "number", "cpus": "number[-number]", "mem": "size"},
    "dist": {"src": "number", "dst": "number", "val": "10 to 255"},
}
"""Kinds of --numa entries, and their keys."""


def _memory_devices(line: Line) -> Iterator[Candidate]:
    for row in ask(line, "query-memory-devices") or []:
        yield Candidate(row["data"]["id"], "memory device")


def _named(line: Line) -> Iterable[Candidate]:
    """NAME, and behind it nothing that could be listed."""
    return [] if line.words and not line.words[-1].startswith("-") else machines(line)


def _devices(line: Line) -> Iterator[Candidate]:
    """`virtio-mem-pci,key=value,...`: the device, then its keys, then values that are a choice."""
    from minivmm.machine_spec import DEVICE_TYPES

    head, comma, rest = line.word.partition(",")
    if not comma:
        yield Candidate("help", "list devices")
        yield from (Candidate(f"{name},") for name in DEVICE_TYPES)
    elif head in DEVICE_TYPES:
        yield from _keys(f"{head},", rest, head)


def _choices(constant: str) -> Values:
    """The words in a constant of machine_spec."""

    def values(line: Line) -> list[Candidate]:
        from minivmm import machine_spec

        return [Candidate(word) for word in getattr(machine_spec, constant)]

    return values


def _short(driver: str) -> Values:
    """Keys alone, for --mem-device and --drive."""
    return lambda line: _keys("", line.word, driver)


def _keys(before: str, text: str, driver: str) -> Iterator[Candidate]:
    """What may come at the end of `text`, which is key=value,key=..."""
    from minivmm.machine_spec import DEVICE_TYPES
    from minivmm.options import describe

    options = {name: info for name, info, _ in describe(DEVICE_TYPES[driver])}
    done, _, last = text.rpartition(",")
    start = f"{before}{done}," if done else before
    key, equals, _ = last.partition("=")
    if equals:
        if key in options and "|" in options[key].kind:
            yield from (Candidate(f"{start}{key}={one}") for one in options[key].kind.split("|"))
        return
    given = {part.partition("=")[0] for part in done.split(",")}
    for name, info in options.items():
        if name not in given:
            yield Candidate(f"{start}{name}=", info.help)


def _numa(line: Line) -> Iterator[Candidate]:
    kind, comma, rest = line.word.partition(",")
    if not comma:
        yield from (Candidate(f"{name},") for name in _NUMA)
        return
    done, _, last = rest.rpartition(",")
    if "=" not in last:
        start = f"{kind},{done}," if done else f"{kind},"
        yield from (
            Candidate(f"{start}{key}=", about) for key, about in _NUMA.get(kind, {}).items()
        )


def _kernels(line: Line) -> Iterable[Candidate]:
    """Fetched releases, unless a path is being typed."""
    from minivmm.guest.kernels import fetched

    if "/" in line.word or line.word.startswith("."):
        return [FILES]
    found = [Candidate(kernel.release, "fetched kernel") for kernel in fetched() if kernel.release]
    return [one for one in found if one.text.startswith(line.word)] or [FILES]


def _qmp(line: Line) -> Iterator[Candidate]:
    """VM, command, then arguments of that command."""
    rows = ask(line, "query-qmp-schema") or []
    entities = {row["name"]: row for row in rows}
    chosen = [word for word in line.words if entities.get(word, {}).get("meta-type") == "command"]
    if chosen:
        for member in entities[entities[chosen[0]]["arg-type"]]["members"]:
            name = member["name"]
            if not any(word.startswith(f"{name}=") for word in line.words):
                yield Candidate(f"{name}=", "optional" if "default" in member else "")
        return
    yield from _named(line)
    for row in rows:
        if row["meta-type"] == "command":
            yield Candidate(row["name"], "QMP command")


def _paths(line: Line) -> Iterator[Candidate]:
    """VM, then a path into the tree, a level at a time."""
    yield from _named(line)
    parent, dot, _ = line.word.rpartition(".")
    tree = ask(line, "x-minivmm-inspect", path=parent)
    keys: Iterable[object] = tree if isinstance(tree, dict) else range(len(tree or []))
    yield from (Candidate(f"{parent}{dot}{key}") for key in keys)


def _kernel_list(line: Line) -> Iterator[Candidate]:
    """Fetched releases, the last of several."""
    from minivmm.guest.kernels import fetched

    done, comma, _ = line.word.rpartition(",")
    yield from (Candidate(f"{done}{comma}{kernel.release}") for kernel in fetched())


def _suites(line: Line) -> Iterable[Candidate]:
    from minivmm.matrix.suites import SUITES

    found = [Candidate(name) for name in SUITES if name.startswith(line.word)]
    return found or [FILES]


def _topics(line: Line) -> Iterator[Candidate]:
    yield Candidate("exit-codes")
    yield Candidate("man", "the manual page")
    yield from (Candidate(verb, about) for verb, about in main.VERBS.items())


VALUES: dict[str, Values] = {
    "name": _named,
    "words": _named,
    "--device": _memory_devices,
    "boot --name": lambda line: [],
    "boot --kernel": _kernels,
    "boot kernel_word": _kernels,
    "boot --device": _devices,
    "boot --mem-device": _short("virtio-mem-pci"),
    "boot --drive": _short("virtio-blk-pci"),
    "boot --numa": _numa,
    "boot --online": _choices("ONLINE_POLICIES"),
    "boot --console": _choices("CONSOLES"),
    "help topic": _topics,
    "inspect words": _paths,
    "matrix suite": _suites,
    "matrix --kernels": _kernel_list,
    "matrix --device-options": _short("virtio-mem-pci"),
    "matrix --against": lambda line: [Candidate("qemu")],
    "qmp words": _qmp,
}
"""By verb and option (or name of the positional argument), or by that alone."""
