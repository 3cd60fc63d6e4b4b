"""NUMA: what `--numa` says, and every rule about it; what it comes to is in nodes.py.

    --numa node,nodeid=0,cpus=0-1,mem=256M      a node with CPUs and boot memory
    --numa dist,src=0,dst=1,val=20              how far it is from one node to another

Names and rules are QEMU's (hw/core/numa.c, qapi/machine.json: NumaOptions). Stricter than there: a
CPU in no node is an error rather than a warning, nodes meet at multiples of 4M, nothing may be said
twice. Looser: distances that nobody gave are 20, and one pair may be asymmetric without all others
being spelled out. Other than there: a size without a suffix is in bytes, as everywhere in minivmm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from minivmm.boot.nodes import Node, Topology
from minivmm.errors import UsageError
from minivmm.memory.layout import MINIMUM_MEMORY
from minivmm.options import (
    from_mapping,
    number_option,
    number_ranges,
    numbers_option,
    parse_pairs,
    size_option,
    tagged,
    to_mapping,
    unknown,
)
from minivmm.spec.platform import MAX_NODES
from minivmm.units import MIB, align_down, format_size

LOCAL_DISTANCE = 10
DEFAULT_DISTANCE = 20
FARTHEST_DISTANCE = 254
UNREACHABLE = 255
"""Distances (ACPI 6.5, 5.2.17). Linux ignores all of them if one to another node is 10 or less."""

BORDER = 4 * MIB
"""Nodes meet at multiples of this and none is smaller: Linux's largest free block must not belong
to two nodes, and Linux 6.1 ignores a smaller node (NODE_MIN_SIZE)."""


@dataclass(frozen=True, kw_only=True)
class NumaNode:
    """A node as the user declared it; sizes in bytes."""

    nodeid: int | None = number_option("number of the node", default=None)
    cpus: tuple[int, ...] = numbers_option("CPUs of the node", default=())
    mem: int = size_option("boot memory of the node", default=0)


@dataclass(frozen=True, kw_only=True)
class NumaDistance:
    """A distance as the user declared it: 10 to the node itself, 11 to 254, 255 if unreachable."""

    src: int = number_option("from this node")
    dst: int = number_option("to this node")
    val: int = number_option("the distance")


NumaEntry = NumaNode | NumaDistance
_TYPES: dict[str, type[NumaEntry]] = {"node": NumaNode, "dist": NumaDistance}


def parse_numa(text: str) -> NumaEntry:
    """The entry that `node,key=value,...` or `dist,key=value,...` means; cpus= may be repeated.

    Raises UsageError for anything that is not understood.
    """
    kind, values = parse_pairs(text, repeatable=("cpus",))
    return _entry(kind, values)


def numa_text(entry: NumaEntry) -> str:
    """The inverse of parse_numa."""
    values = to_mapping(entry)
    cpus = values.pop("cpus", ())
    assert isinstance(cpus, tuple)
    words = [f"{key}={value}" for key, value in values.items()]
    return ",".join([_kind(entry), *words, *(f"cpus={part}" for part in number_ranges(cpus))])


def numa_from_json(data: object) -> tuple[NumaEntry, ...]:
    """The entries in `data`, a list of objects as numa_to_json makes them. Raises UsageError."""
    found = tagged(data, key="type", plural="numa", one="numa entry", tags=_TYPES)
    return tuple(_entry(kind, values) for kind, values in found)


def numa_to_json(entries: Sequence[NumaEntry]) -> list[dict[str, object]]:
    """`entries` as plain JSON data, in the shape of QEMU's NumaOptions."""
    return [{"type": _kind(entry), **to_mapping(entry)} for entry in entries]


def resolve(
    entries: Sequence[NumaEntry], *, cpus: int, memory: int, devices: Mapping[str, int]
) -> Topology:
    """The nodes of a machine with `cpus` vCPUs, `memory` bytes of RAM, and `devices`: id -> node.

    Without entries all is in node 0, and devices bring nodes of their own. Raises UsageError for
    everything in `entries` that contradicts itself or the rest of the machine.
    """
    if not entries:
        last = max(devices.values(), default=0)
        return Topology((Node(tuple(range(cpus)), memory), *[Node((), 0)] * last))
    declared = _declared(entries)
    homes = _homes(declared, cpus)
    _check_memory(declared, memory)
    for identifier, number in devices.items():
        if number >= len(declared):
            raise UsageError(
                f"{identifier}: node {number} is not declared: use {_range(len(declared))},"
                f" or add --numa node,nodeid={number}"
            )
    nodes = (Node(cpus, node.mem) for cpus, node in zip(homes, declared, strict=True))
    return Topology(tuple(nodes), _distances(entries, len(declared)))


def _entry(kind: str, values: Mapping[str, object]) -> NumaEntry:
    if kind not in _TYPES:
        raise UsageError(unknown("kind of numa entry", kind, list(_TYPES)))
    return from_mapping(_TYPES[kind], values, what=f"numa {kind}")


def _kind(entry: NumaEntry) -> str:
    return next(name for name, kind in _TYPES.items() if type(entry) is kind)


def _declared(entries: Sequence[NumaEntry]) -> list[NumaNode]:
    """Nodes by number: one that is not given is how many nodes were declared before it."""
    found: dict[int, NumaNode] = {}
    for node in entries:
        if not isinstance(node, NumaNode):
            continue
        number = len(found) if node.nodeid is None else node.nodeid
        if number >= MAX_NODES:
            _refuse(f"node {number} is more than Linux knows: use {_range(MAX_NODES)}")
        if number in found:
            free = next(n for n in range(len(found) + 1) if n not in found)
            _refuse(f"node {number} is declared twice: give each its own nodeid= (free: {free})")
        found[number] = node
    if not found:
        _refuse("distances, but no node is declared: add --numa node,cpus=...,mem=... for each")
    for number in range(len(found)):
        if number not in found:
            highest = max(found)
            _refuse(
                f"node {highest} is declared, but node {number} is not, and nodes are numbered"
                f" from 0 without gaps: use nodeid={number}, or declare node {number} as well"
            )
    return [found[number] for number in range(len(found))]


def _homes(declared: Sequence[NumaNode], cpus: int) -> list[tuple[int, ...]]:
    """vCPUs of each node; if no node asks for any, they are dealt out in turn."""
    if not any(node.cpus for node in declared):
        return [tuple(range(cpus))[number :: len(declared)] for number in range(len(declared))]
    home: dict[int, int] = {}
    for number, node in enumerate(declared):
        for cpu in node.cpus:
            if cpu >= cpus:
                _refuse(
                    f"node {number}: cpus={cpu}, but this machine has CPUs {_range(cpus)}:"
                    f" use those, or --cpus {cpu + 1}"
                )
            if home.setdefault(cpu, number) != number:
                _refuse(f"CPU {cpu} is in node {home[cpu]} and in node {number}: leave it in one")
    if missing := number_ranges(set(range(cpus)) - set(home)):
        words = ",".join(f"cpus={part}" for part in missing)
        _refuse(f"CPUs {', '.join(missing)} are in no node: add {words} to a node")
    return [tuple(sorted(set(node.cpus))) for node in declared]


def _check_memory(declared: Sequence[NumaNode], memory: int) -> None:
    """Borders are where Linux can have them, and the sum is the boot memory."""
    filled = [number for number, node in enumerate(declared) if node.mem]
    for number in filled:
        size = declared[number].mem
        if size < BORDER or (size % BORDER and number != filled[-1]):
            below = align_down(size, BORDER)
            hint = f"; {size} MiB are {size}M" if size < MIB else ""
            _refuse(
                f"node {number}: mem {format_size(size)} is not a multiple of"
                f" {format_size(BORDER)}, where Linux can part nodes (nearest:"
                f" {format_size(below)}, {format_size(below + BORDER)}){hint}"
            )
    total = sum(node.mem for node in declared)
    if total != memory and memory >= MINIMUM_MEMORY:  # otherwise the address map refuses -m
        last = filled[-1] if filled else len(declared) - 1
        fitting = declared[last].mem + memory - total
        ways = [f"mem={format_size(fitting)} in node {last}"] if fitting >= BORDER else []
        ways += [f"-m {format_size(total)}"] if total >= MINIMUM_MEMORY else []
        _refuse(
            f"mem of all nodes is {format_size(total)}, but it must add up to the boot memory"
            f" {format_size(memory)} (nearest: {', '.join(ways)})"
        )


def _distances(entries: Sequence[NumaEntry], count: int) -> tuple[tuple[int, ...], ...]:
    """The full matrix; a pair of which one direction is given is symmetric."""
    given: dict[tuple[int, int], int] = {}
    for item in entries:
        if isinstance(item, NumaDistance):
            _check_distance(item, count)
            if (item.src, item.dst) in given:
                _refuse(f"the distance from {item.src} to {item.dst} is given twice: leave one")
            given[item.src, item.dst] = item.val

    def distance(src: int, dst: int) -> int:
        default = LOCAL_DISTANCE if src == dst else DEFAULT_DISTANCE
        return given.get((src, dst), given.get((dst, src), default))

    return tuple(tuple(distance(src, dst) for dst in range(count)) for src in range(count))


def _check_distance(item: NumaDistance, count: int) -> None:
    what = f"distance from {item.src} to {item.dst}"
    for number in (item.src, item.dst):
        if number >= count:
            _refuse(f"{what}: node {number} is not declared: use {_range(count)}")
    if item.src == item.dst and item.val != LOCAL_DISTANCE:
        _refuse(f"{what}: val {item.val} is not a node's distance to itself: use {LOCAL_DISTANCE}")
    if item.src != item.dst and not LOCAL_DISTANCE < item.val <= UNREACHABLE:
        _refuse(
            f"{what}: val {item.val} is out of range: use {LOCAL_DISTANCE + 1} to"
            f" {FARTHEST_DISTANCE}, or {UNREACHABLE} for unreachable"
        )


def _range(count: int) -> str:
    return "0" if count == 1 else f"0 to {count - 1}"


def _refuse(why: str) -> NoReturn:
    raise UsageError(f"numa: {why}")
