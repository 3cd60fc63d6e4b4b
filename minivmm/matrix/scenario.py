"""What a scenario is: a function over a guest, and what it needs before it is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from minivmm.matrix.guest import PLAIN, Guest, Setup, Skipped

AUTO_MOVABLE = "auto-movable"

POLICIES = {
    "offline": ("offline", "contig-zones"),
    "online": ("online", "contig-zones"),
    "online_kernel": ("online_kernel", "contig-zones"),
    "online_movable": ("online_movable", "contig-zones"),
    AUTO_MOVABLE: ("online", AUTO_MOVABLE),
}
"""Onlining policy -> auto_online_blocks, and the parameter memory_hotplug.online_policy."""

_BLOCKS = "/sys/devices/system/memory/auto_online_blocks"
_ZONES = "/sys/module/memory_hotplug/parameters/online_policy"


class Note(Protocol):
    """Remembers a figure; of None, nothing. Each repetition of a scenario adds one."""

    def __call__(self, name: str, value: float | None, /) -> None:
        """`name` ends in its unit: -seconds, -seconds-per-gib, -fraction (0 to 1), -count."""


@dataclass(frozen=True)
class Scenario:
    """`run` is called once for each repetition, with a guest that has nothing plugged."""

    name: str
    run: Callable[[Guest, Note], None]
    online: str = "online_movable"
    """Of POLICIES; set in the running guest."""
    setup: Setup = PLAIN
    measures_boot: bool = False
    """Its figures are those of booting with and without the device, and `run` is not called."""


def scenario(
    *, online: str = "online_movable", setup: Setup = PLAIN
) -> Callable[[Callable[[Guest, Note], None]], Scenario]:
    """Make a function a scenario, called like it, with '-' for '_'."""

    def made(function: Callable[[Guest, Note], None]) -> Scenario:
        return Scenario(function.__name__.replace("_", "-"), function, online, setup)

    return made


def set_policy(guest: Guest, policy: str) -> None:
    """Have the guest online memory by `policy` from now on. Raises Skipped if it cannot."""
    blocks, zones = POLICIES[policy]
    ran = guest.run(
        f"[ -w {_ZONES} ] || exit 3; echo {zones} >{_ZONES} && echo {blocks} >{_BLOCKS}"
    )
    if ran.status == 3 and policy != AUTO_MOVABLE:  # before Linux 5.15 there is but one
        ran = guest.run(f"echo {blocks} >{_BLOCKS}")
    if ran.status != 0:
        raise Skipped(f"this kernel has no policy {policy}")
