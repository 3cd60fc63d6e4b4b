"""Rules about progress: a driver is there, so why is what it has plugged not what was asked for?

A rule looks at a View and, if there are any, GuestFacts, and gives its Diagnosis or None. They are
in the order in which diagnosis.py asks them; each relies on those before it to have said no.
"""

from __future__ import annotations

from minivmm.devices.virtio_mem.verdict import Diagnosis, Kind
from minivmm.devices.virtio_mem.view import GuestFacts, View
from minivmm.spec.virtio_mem import ResponseType
from minivmm.units import GIB, MIB, format_size

SILENCE = 5.0
"""Seconds without a request after which a driver is not just slow."""

LONGEST_RETRY = 300.0
"""Seconds that Linux' driver waits at most before it tries again (virtio_mem.c, D.6)."""

_LOOP = 10
"""So many NACKs in a row are no accident: drivers read the configuration after the first."""

_SUB_BLOCK = 2 * MIB
_OLD_SUB_BLOCK = 4 * MIB
"""Least that Linux plugs on x86-64; the latter before 5.19 (reference D.3)."""

_OFFLINE_THRESHOLD = GIB
"""Linux' driver adds so much that nobody onlines, or two of its blocks if that is more (D.7)."""

_POLICY = "/sys/devices/system/memory/auto_online_blocks"


def nack_loop(view: View, facts: GuestFacts | None) -> Diagnosis | None:
    """A driver that does not know the target asks again at once after every NACK (D.6)."""
    run = view.run
    if run is None or run.answer is not ResponseType.NACK or run.times < _LOOP:
        return None
    if view.since_request is None or view.since_request > SILENCE:
        return None
    return Diagnosis(
        Kind.NACK_LOOP,
        "the driver keeps asking for more than the requested size",
        (f"{run.times} requests in a row in {view.run_seconds:.1f} s got NACK",),
        "minivmm kick: the interrupt makes the driver read the requested size again",
    )


def done(view: View, facts: GuestFacts | None) -> Diagnosis | None:
    """The sizes agree."""
    if view.requested != view.plugged:
        return None
    return Diagnosis(Kind.DONE, f"{format_size(view.plugged)} are plugged, as requested")


def paused(view: View, facts: GuestFacts | None) -> Diagnosis | None:
    """A guest that does not run does not plug."""
    if view.around.running:
        return None
    return Diagnosis(
        Kind.PAUSED, "the machine is paused", ("its vCPUs do not run",), "resume it (QMP cont)"
    )


def busy(view: View, facts: GuestFacts | None) -> Diagnosis | None:
    """The driver was told BUSY, and nothing has ended its wait since."""
    run, since = view.run, view.since_change
    if run is None or run.answer is not ResponseType.BUSY or since is None:
        return None
    told = view.since_config is not None and view.since_config < since
    if told or since > LONGEST_RETRY + SILENCE:
        return None
    refused = f"{run.request.name} of {format_size(run.blocks * view.block_size)}"
    evidence = (
        f"its last request, {refused}, got BUSY {since:.0f} s ago: {run.why or 'no reason'}",
        f"{run.times} BUSY in a row; Linux tries again 50 to {LONGEST_RETRY:.0f} s after each",
    )
    if view.has_room is False:
        return Diagnosis(
            Kind.HOST_SHORTAGE,
            "the host has not enough free memory for what the guest asks",
            evidence,
            "free memory on the host (huge pages: enlarge the pool); the driver is told when there"
            " is room, or at once by minivmm kick",
        )
    return Diagnosis(
        Kind.RETRY_WAIT,
        "the driver waits before it tries again",
        evidence,
        "minivmm kick: the interrupt makes the driver try at once",
    )


def no_whole_block(view: View, facts: GuestFacts | None) -> Diagnosis | None:
    """Linux uses only whole memory blocks, and all that fit are plugged (reference H-4)."""
    told = facts.memory_block if facts else None
    unit = _unit(view, facts)
    room = view.capacity(unit)
    if not view.requested > view.plugged >= room:
        return None
    holds = f"only {format_size(room)}" if room else "nothing"
    return Diagnosis(
        Kind.NO_WHOLE_BLOCK,
        f"{holds} of the usable region lies in whole memory blocks of the guest",
        (
            f"Linux adds memory in aligned blocks of {format_size(unit)}"
            + ("" if told else " (by its rule for so much boot memory)"),
            f"usable are {view.base:#x}-{view.base + view.usable - 1:#x}"
            f" ({format_size(view.usable)})",
        ),
        f"boot with size= (and memaddr=) a multiple of {format_size(unit)}"
        + (f", or request {format_size(room)}" if room else ""),
    )


def remainder(view: View, facts: GuestFacts | None) -> Diagnosis | None:
    """Linux ignores what is less than its sub-block, for good (reference D.3)."""
    left = abs(view.requested - view.plugged)
    if left >= _OLD_SUB_BLOCK or view.idle < SILENCE:
        return None
    unit = _SUB_BLOCK if left < _SUB_BLOCK else _OLD_SUB_BLOCK
    return Diagnosis(
        Kind.REMAINDER,
        f"what is left, {format_size(left)}, is less than the guest's unit",
        (f"Linux plugs and unplugs {format_size(unit)} at least (4M before 5.19)",),
        f"request a multiple of {format_size(unit)}",
        certain=left < _SUB_BLOCK,
    )


def working(view: View, facts: GuestFacts | None) -> Diagnosis | None:
    """Something happened a moment ago, or we are the ones to be waited for."""
    if view.idle >= SILENCE and not view.at_work:
        return None
    doing = "plugging" if view.requested > view.plugged else "unplugging"
    seen = (
        "the host works on the guest's request"
        if view.at_work
        else f"something happened {view.idle:.1f} s ago"
    )
    return Diagnosis(Kind.WORKING, f"the guest is {doing}", (seen,), "wait")


def not_onlined(view: View, facts: GuestFacts | None) -> Diagnosis | None:
    """Added memory that stays offline: the driver stops at a threshold (reference D.7)."""
    if view.requested < view.plugged:
        return None
    unit = _unit(view, facts)
    threshold = max(_OFFLINE_THRESHOLD, 2 * unit)
    if facts and facts.offline is not None:
        if facts.offline * unit <= threshold - unit:
            return None
        evidence = [
            f"{facts.offline} memory blocks of {format_size(unit)} are offline in the guest"
        ]
    else:
        by_policy = view.around.online == "offline" and view.plugged >= threshold
        if not by_policy and threshold not in (view.plugged, view.moved):
            return None
        evidence = [
            f"the driver stopped after {format_size(threshold)}, its limit for memory that"
            " nobody onlines"
        ]
        if by_policy:
            evidence.append("the machine was booted with --online offline")
    return Diagnosis(
        Kind.NOT_ONLINED,
        "the guest does not online its new memory, so the driver stopped adding",
        tuple(evidence),
        f"in the guest: echo online_movable > {_POLICY}, and the same into the state of every"
        " memory block there that is offline; or boot with --online online_movable",
        certain=facts is not None and facts.offline is not None,
    )


def unmovable(view: View, facts: GuestFacts | None) -> Diagnosis | None:
    """A driver asks to unplug only what Linux could empty, and it asks for nothing (D.4)."""
    if view.requested >= view.plugged:
        return None
    excess = format_size(view.plugged - view.requested)
    evidence = [
        f"the guest has unplugged {format_size(-view.moved)} since it was asked,"
        f" and nothing for {view.idle:.0f} s"
        if view.moved < 0
        else f"the guest was asked {view.since_target:.0f} s ago and has not unplugged anything"
    ]
    remedy = (
        "free memory in the guest (tmpfs, page cache, locked or pinned memory), then minivmm kick:"
        f" Linux tries again only every 50 to {LONGEST_RETRY:.0f} s"
    )
    if facts and facts.kernel_zone:
        evidence.append(f"{facts.kernel_zone} memory blocks are in a zone for kernel memory")
        remedy += "; boot with --online online_movable to keep the kernel out of it"
    if facts and facts.available is not None:
        evidence.append(f"{format_size(facts.available)} are available in the guest")
    return Diagnosis(
        Kind.UNMOVABLE,
        f"the guest cannot free the {excess} that it should unplug",
        tuple(evidence),
        remedy,
        certain=facts is not None and view.idle > 3 * SILENCE,
    )


def stalled(view: View, facts: GuestFacts | None) -> Diagnosis:
    """The driver is there, has room, was told, and asks for nothing."""
    log = facts.log if facts else ()
    if any("not addressable" in line for line in log):
        return Diagnosis(
            Kind.NOT_ADDRESSABLE,
            "part of the region is beyond what the guest's kernel can map",
            (f"the region is {view.base:#x}-{view.end - 1:#x}",),
            "boot with a smaller size= or memaddr=",
        )
    evidence = [f"the driver has asked for nothing for {view.idle:.0f} s"]
    if view.count("PLUG", "ACK") and view.count("UNPLUG", "ACK"):
        evidence.append("it unplugged what it had just plugged, as Linux does if it cannot add it")
    return Diagnosis(
        Kind.STALLED,
        "the driver is silent, though it could plug more",
        tuple(evidence),
        "the guest may have no memory left to describe new memory (1/64 of it), or its kernel is"
        " stuck: see its log (dmesg | grep virtio_mem), and try minivmm kick",
        certain=False,
    )


def _unit(view: View, facts: GuestFacts | None) -> int:
    """Bytes that Linux adds at once: its memory block, or ours if that is larger (D.3)."""
    told = facts.memory_block if facts else None
    return max(view.block_size, told or view.linux_block)
