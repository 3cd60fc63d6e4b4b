"""diagnose(): why a device has, or has not, what was asked for; the rules are in *_rules.py.

    View (the device's own) + GuestFacts (from inside the guest, if somebody looked) -> Diagnosis

Pure: no clock, no device, no guest is touched here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from minivmm.devices.virtio_mem import driver_rules, progress_rules
from minivmm.devices.virtio_mem.verdict import Diagnosis, Kind
from minivmm.devices.virtio_mem.view import GuestFacts, View, observe
from minivmm.units import format_size

__all__ = ["Diagnosis", "GuestFacts", "Kind", "View", "diagnose", "observe"]

_RULES: tuple[Callable[[View, GuestFacts | None], Diagnosis | None], ...] = (
    driver_rules.needs_reset,
    driver_rules.feature_refused,
    driver_rules.not_addressable,
    driver_rules.gave_up,
    driver_rules.no_driver,
    driver_rules.marked_broken,
    progress_rules.nack_loop,
    progress_rules.done,
    progress_rules.paused,
    progress_rules.busy,
    progress_rules.no_whole_block,
    progress_rules.remainder,
    progress_rules.working,
    progress_rules.not_onlined,
    progress_rules.unmovable,
    progress_rules.stalled,
)
"""The first that applies is the diagnosis: what cannot work comes before what does not."""


def diagnose(view: View, inside: GuestFacts | None = None) -> Diagnosis:
    """What is the matter with the device of `view`; `inside` makes some answers certain."""
    found = next(found for rule in _RULES if (found := rule(view, inside)))
    return replace(found, evidence=(*found.evidence, *_seen(view), *_told(inside)))


def _seen(view: View) -> Iterator[str]:
    """What the device sees, whatever the matter is."""
    yield (
        f"requested {format_size(view.requested)}, plugged {format_size(view.plugged)},"
        f" usable {format_size(view.usable)} of {format_size(view.region_size)}"
    )
    yield f"driver's status: {view.around.status.name or 'none (reset)'}"
    asked = "never" if view.since_request is None else f"{view.since_request:.1f} s ago"
    answers = ", ".join(
        f"{times} {request} {answer}" for (request, answer), times in sorted(view.answers.items())
    )
    yield f"last request: {asked}; since the size was requested: {answers or 'none'}"


def _told(inside: GuestFacts | None) -> Iterator[str]:
    """What the guest says of itself."""
    if inside is None:
        return
    if inside.online is not None and inside.offline is not None:
        yield (
            f"in the guest: {inside.online} memory blocks online, {inside.offline} offline,"
            f" policy {inside.policy or 'unknown'}"
        )
    for line in inside.log:
        yield f"guest's log: {line}"
