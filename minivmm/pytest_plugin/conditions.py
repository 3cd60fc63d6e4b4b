"""Markers: what a test needs of kernel and host, why it cannot run, and the machine it wants."""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from minivmm.guest.kernels import Kernel

_MARKERS = (
    "minivmm_machine(**options): the machine of the fixture `guest`, as minivmm.boot takes it",
    "minivmm_kernel(*versions): needs a kernel that fits all of them: '>=6.8', '<6.13', '==6.12'",
    "minivmm_config(*names): needs a kernel built with these, y or m: 'VIRTIO_MEM'",
    "minivmm_accel(name): runs only on the host's own KVM ('kvm'), or only in the lab ('lab')",
)

_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
    "!=": operator.ne,
}
_VERSION = re.compile(r"(>=|<=|==|!=|>|<)\s*([0-9]+(?:\.[0-9]+)*)")

LAB_MARK = "MINIVMM_LAB"
"""Variable that is set in the lab (minivmm.lab.lab)."""


def register(config: pytest.Config) -> None:
    """Make the markers known."""
    for line in _MARKERS:
        config.addinivalue_line("markers", line)


def machine_options(node: pytest.Item | pytest.Collector) -> dict[str, Any]:
    """Options of the minivmm_machine markers at and around `node`; the nearest wins."""
    options: dict[str, Any] = {}
    for marker in reversed(list(node.iter_markers("minivmm_machine"))):
        options |= marker.kwargs
    return options


def why_not(item: pytest.Item, kernel: str | None) -> str | None:
    """Why `item` cannot run with the kernel of that name (None: the newest); None if it can.

    Raises pytest.UsageError for a marker that is not understood.
    """
    for marker in item.iter_markers("minivmm_accel"):
        why = _wrong_place(*marker.args)
        if why is not None:
            return why
    versions = [text for marker in item.iter_markers("minivmm_kernel") for text in marker.args]
    names = [name for marker in item.iter_markers("minivmm_config") for name in marker.args]
    if not versions and not names:
        return None
    found = _find(kernel)
    if found is None:
        return None  # its fixture says what is missing
    for text in versions:
        if not fits(found.release, text):
            return f"needs a kernel {text}: this one is {found.release}"
    return _unconfigured(found, names) if names else None


def fits(release: str, wanted: str) -> bool:
    """Does kernel `release` ("6.12.117+deb12") fit `wanted` (">=6.8")? As many numbers count as are
    in it. Raises pytest.UsageError if it is not understood.
    """
    match = _VERSION.fullmatch(wanted.strip())
    if match is None:
        raise pytest.UsageError(f"minivmm_kernel({wanted!r}) is not understood: write '>=6.8'")
    numbers = tuple(int(part) for part in match[2].split("."))
    leading = re.match(r"[0-9]+(?:\.[0-9]+)*", release)
    have = tuple(int(part) for part in leading[0].split(".")) if leading else ()
    have += (0,) * (len(numbers) - len(have))
    return _COMPARED[match[1]](have[: len(numbers)], numbers)


def _wrong_place(*names: str) -> str | None:
    inside = LAB_MARK in os.environ
    match names:
        case ["kvm"]:
            return "needs the host's own KVM: this is the lab, which emulates" if inside else None
        case ["lab"]:
            return None if inside else "runs in the lab only: pytest --minivmm-lab"
    raise pytest.UsageError(f"minivmm_accel{names} is not understood: write 'kvm' or 'lab'")


def _find(name: str | None) -> Kernel | None:
    from minivmm.errors import MinivmmError
    from minivmm.guest import kernels

    try:
        return kernels.newest() if name is None else kernels.find(name)
    except MinivmmError:
        return None


def _unconfigured(kernel: Kernel, names: list[str]) -> str | None:
    """Why `kernel` has not all of `names`, by the configuration that lies beside it."""
    folder, release = kernel.image.parent, kernel.release
    places = (folder / "config", folder / f"config-{release}", Path(f"/boot/config-{release}"))
    file = next((path for path in places if path.is_file()), None)
    if file is None:
        return f"cannot tell whether kernel {release} has {', '.join(names)}: no {places[0]}"
    lines = set(file.read_text(errors="replace").splitlines())
    for name in names:
        option = f"CONFIG_{name.removeprefix('CONFIG_')}"
        if not lines & {f"{option}=y", f"{option}=m"}:
            return f"needs a kernel with {option}: {release} has it not"
    return None
