"""Paths into the tree of plain data that x-minivmm-inspect shows: `board.devices.vmem0`.

Parts are keys of objects or numbers of list items, separated by '.' or '/'. A key that has dots
itself ("0000:00:01.0") is found as well: the longest key that fits wins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from minivmm.errors import Refused
from minivmm.options import unknown

_SEPARATORS = "./"


def walk(tree: object, path: str) -> object:
    """What lies at `path`; the whole tree for an empty one. Raises Refused, naming the parts."""
    found, rest, done = tree, path.strip(_SEPARATORS), ""
    while rest:
        children = _children(found)
        if not children:
            raise Refused(f"{done} has nothing inside: use {done} itself")
        key = _first_key(rest, children)
        if key is None:
            word = rest.split(".")[0].split("/")[0]
            raise Refused(unknown(f"part of {done or 'the machine'}", word, list(children)))
        found, rest = children[key], rest[len(key) :].lstrip(_SEPARATORS)
        done = f"{done}.{key}" if done else key
    return found


def paths(tree: object, depth: int, prefix: str = "") -> list[str]:
    """The paths of all objects and lists down to `depth` levels, parents first."""
    found: list[str] = []
    for key, child in _children(tree).items():
        if depth and _children(child):
            found += [prefix + key, *paths(child, depth - 1, f"{prefix}{key}.")]
    return found


def _children(node: object) -> dict[str, object]:
    """What is inside, by the words that paths have for it."""
    if isinstance(node, Mapping):
        return {str(key): child for key, child in node.items()}
    if isinstance(node, Sequence) and not isinstance(node, str):
        return {str(index): child for index, child in enumerate(node)}
    return {}


def _first_key(rest: str, children: Mapping[str, object]) -> str | None:
    fitting = [
        key
        for key in children
        if rest == key or (rest.startswith(key) and rest[len(key)] in _SEPARATORS)
    ]
    return max(fitting, key=len, default=None)
