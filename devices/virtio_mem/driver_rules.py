"""Rules about the driver: is there one, and has it, or have we, given up?

A rule looks at a View and, if there are any, GuestFacts, and gives its Diagnosis or None.
"""

from __future__ import annotations

from minivmm.devices.virtio_mem.verdict import Diagnosis, Kind
from minivmm.devices.virtio_mem.view import GuestFacts, View
from minivmm.spec.virtio import DeviceStatus
from minivmm.spec.virtio_mem import Feature, RequestType, ResponseType
from minivmm.units import format_size

_FATAL = (RequestType.PLUG, RequestType.UNPLUG)
"""Requests after whose ERROR Linux' driver never sends another (reference D.6)."""

_RESTART = "restart the driver in the guest (unbind and bind it) or reboot the guest"


def needs_reset(view: View, facts: GuestFacts | None) -> Diagnosis | None:
    """The device set NEEDS_RESET, which Linux ignores (reference H-14)."""
    if not view.around.status & DeviceStatus.NEEDS_RESET:
        return None
    why = view.around.trouble or "its driver broke the rules"
    return Diagnosis(
        Kind.BROKEN,
        "the device has stopped and needs a reset",
        (f"the device stopped since {why}",),
        f"{_RESTART}; what led to it is in the events of x-minivmm-inspect",
    )


def feature_refused(view: View, facts: GuestFacts | None) -> Diagnosis | None:
    """FEATURES_OK was refused for want of a feature (MEM-D-12)."""
    if not view.missing_features or view.live:
        return None
    missing = Feature(view.missing_features)
    return Diagnosis(
        Kind.FEATURE_REFUSED,
        f"the guest's driver lacks {missing.name}, which this device insists on",
        ("FEATURES_OK was refused",),
        "boot a newer kernel (Linux has UNPLUGGED_INACCESSIBLE since 5.16), or use private"
        " anonymous memory with unplugged-inaccessible=auto",
    )


def not_addressable(view: View, facts: GuestFacts | None) -> Diagnosis | None:
    """The region reaches beyond the physical addresses of the guest's CPU (reference D.5, D.8)."""
    bits = view.around.phys_bits
    reachable = min(max((1 << bits) - view.base, 0), view.region_size)
    growing = view.requested > view.plugged
    if reachable == view.region_size or (view.live and (not growing or view.plugged < reachable)):
        return None
    part = f"all but {format_size(reachable)}" if reachable else "all"
    return Diagnosis(
        Kind.NOT_ADDRESSABLE,
        f"{part} of the region is beyond the {bits} address bits of the guest's CPU",
        (
            f"the region is {view.base:#x}-{view.end - 1:#x}, the CPU ends at {(1 << bits) - 1:#x}",
            "Linux' driver refuses such a region as a whole (could not reserve device region)",
        ),
        "boot with a smaller size= or memaddr=, or with more --phys-bits if the host has them",
    )


def gave_up(view: View, facts: GuestFacts | None) -> Diagnosis | None:
    """The driver set FAILED: its probe went wrong."""
    if not view.around.status & DeviceStatus.FAILED:
        return None
    return Diagnosis(
        Kind.BROKEN,
        "the guest's driver gave up when it was set up",
        ("the driver set FAILED in the device's status",),
        f"the guest's kernel log says why (dmesg | grep virtio_mem); then {_RESTART}",
    )


def no_driver(view: View, facts: GuestFacts | None) -> Diagnosis | None:
    """Nobody has set DRIVER_OK."""
    if view.live:
        return None
    status = view.around.status
    driver = facts.driver if facts else None
    if status & DeviceStatus.DRIVER:
        summary = "the guest's driver has not finished setting the device up"
        seen = "a driver took the device but has not set DRIVER_OK"
    elif status & DeviceStatus.ACKNOWLEDGE:
        summary = "no driver is bound to the device in the guest"
        seen = "the guest has found the device (ACKNOWLEDGE), but no driver took it (DRIVER)"
    else:
        summary = "the guest has not touched the device"
        seen = "the device's status is 0: the guest still boots, sleeps, or has no virtio_pci"
    if driver == "missing":
        summary = "the guest's kernel has no virtio_mem driver loaded"
    remedy = {
        "missing": "in the guest: modprobe virtio_mem (CONFIG_VIRTIO_MEM; Linux since 5.8)",
        "unbound": "in the guest: echo virtioN > /sys/bus/virtio/drivers/virtio_mem/bind",
    }.get(
        driver or "",
        "wait for the guest to boot; load virtio_mem in it (modprobe virtio_mem), or bind it to the"
        " device",
    )
    return Diagnosis(Kind.NO_DRIVER, summary, (seen,), remedy)


def marked_broken(view: View, facts: GuestFacts | None) -> Diagnosis | None:
    """Linux marks the device broken after an ERROR, or an error of its own (reference D.6)."""
    told = facts is not None and any("marking device broken" in line for line in facts.log)
    run, evidence = view.run, []
    if run is not None and run.answer is ResponseType.ERROR and run.request in _FATAL:
        evidence.append(f"its last {run.request.name} was answered ERROR: {run.why or 'no reason'}")
    if not told and not evidence:
        return None
    return Diagnosis(
        Kind.BROKEN,
        "the guest's driver has given the device up after an error",
        tuple(evidence),
        _RESTART,
        certain=told,
    )
