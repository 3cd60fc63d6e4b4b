"""Can this host's /dev/kvm run a stock kernel, and if not, why and what cures it?"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from minivmm.errors import HostError
from minivmm.kvm.abi import Cap
from minivmm.kvm.system import System
from minivmm.kvm.vcpu import install_kick_handler

PVM_MODULE = Path("/sys/module/kvm_pvm")
CPUINFO = Path("/proc/cpuinfo")

NEEDED = {
    "user memory": Cap.USER_MEMORY,
    "in-kernel irqchip": Cap.IRQCHIP,
    "irq routing": Cap.IRQ_ROUTING,
    "irqfd": Cap.IRQFD,
    "ioeventfd": Cap.IOEVENTFD,
    "immediate exit": Cap.IMMEDIATE_EXIT,
}
"""Capabilities without which no machine can be built."""


@dataclass(frozen=True)
class Accel:
    """`usable` for stock kernels; if not, `reason` and, where there is one, a `cure`."""

    usable: bool
    reason: str
    cure: str | None = None
    details: dict[str, object] = field(default_factory=dict)


def probe() -> Accel:
    """Look at /dev/kvm without running anything; never raises."""
    try:
        details = _capabilities()
    except HostError as error:
        return Accel(False, str(error), "use --accel lab")
    missing = [name for name, value in details.items() if not value]
    if missing:
        return Accel(False, f"/dev/kvm lacks {', '.join(missing)}", "use --accel lab", details)
    if PVM_MODULE.exists() and not _hardware_virtualization():
        return Accel(
            False,
            "/dev/kvm cannot run stock kernels (kvm_pvm, no VMX or SVM)",
            "use --accel lab",
            details,
        )
    return Accel(True, "/dev/kvm can run stock kernels", None, details)


def open_system() -> System:
    """/dev/kvm, for Machine, with vCPUs ready to be kicked; the caller closes it.

    Call it from the main thread. Raises HostError, naming the cure.
    """
    install_kick_handler()
    return System()


def _capabilities() -> dict[str, object]:
    """What KVM says about everything in NEEDED. Raises HostError."""
    system = System()
    try:
        return {name: system.check(cap) for name, cap in NEEDED.items()}
    finally:
        system.close()


def _hardware_virtualization() -> bool:
    """True if the CPU offers VMX or SVM."""
    try:
        words = CPUINFO.read_text().split()
    except OSError:
        return False
    return "vmx" in words or "svm" in words
