"""What a machine does about accesses to unplugged memory: finding them, and `protect=`.

A memslot covers plugged and unplugged blocks alike at first; the device forbids the latter to
everybody (mprotect). A vCPU that touches one then faults, and KVM does not say where:

    EFAULT -> all vCPUs park -> memslots are narrowed to what is plugged -> the vCPUs go on
           -> the same instruction finds no memslot: MMIO exit, with an address -> Intruders -> here
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from minivmm.devices.spec import qom_path
from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.devices.virtio_mem.intruders import Intrusion
from minivmm.errors import HostError
from minivmm.kvm.hypervisor import HypervisorVcpu
from minivmm.memslots import Memslots

EVENT = "X_MINIVMM_UNPLUGGED_ACCESS"
"""QMP event: one access to unplugged memory, and how many others went unreported before it."""

REPORT_INTERVAL = 1.0
"""Least seconds between two reports on a device whose guest runs on: it could make millions."""


@dataclass(frozen=True)
class Measures:
    """What can be done to the machine; all of it with the lock held."""

    warn: Callable[[str], None]
    """Tell the user a line."""
    emit: Callable[[str, dict[str, object]], None]
    """Send a QMP event."""
    pause: Callable[[], None]
    kill: Callable[[str], None]
    """End the guest, for this reason."""
    halt: Callable[[Callable[[], None]], None]
    """Park all vCPUs, then call that on the loop."""
    go_on: Callable[[], None]
    """End of the halt."""
    fail: Callable[[str], None]
    """End the machine: the host cannot go on, for this reason."""


class Sentry:
    """Applies `protect` of a device to its intrusions."""

    def __init__(self, device: VirtioMem, measures: Measures) -> None:
        self._device = device
        self._measures = measures
        self._reported = float("-inf")  # when, in seconds of CLOCK_MONOTONIC
        self._unreported = 0

    def on_intrusion(self, intrusion: Intrusion) -> None:
        """The device has recorded `intrusion`."""
        policy = self._device.spec.protect
        if policy == "kill":
            self._report(intrusion)
            self._measures.kill(f"{self._device.identifier}: {intrusion}")
        elif policy == "stop":
            self._report(intrusion)
            self._measures.pause()
        elif policy == "report":
            if intrusion.time - self._reported >= REPORT_INTERVAL:
                self._reported = intrusion.time
                self._report(intrusion)
            else:
                self._unreported += 1

    def _report(self, intrusion: Intrusion) -> None:
        identifier, unreported = self._device.identifier, self._unreported
        self._unreported = 0
        data: dict[str, object] = {
            "id": identifier,
            "qom-path": qom_path(identifier),
            "source": intrusion.source,
            "cpu-index": intrusion.vcpu,
            "rip": intrusion.rip,
            "gpa": intrusion.gpa,
            "size": intrusion.size,
            "write": intrusion.write,
            "block": intrusion.block,
            "block-start": intrusion.block_start,
            "seconds-since-unplug": intrusion.age,
            "unreported": unreported,
        }
        more = f" (and {unreported} other accesses since the last report)" if unreported else ""
        self._measures.warn(f"{identifier}: {intrusion}{more}")
        self._measures.emit(EVENT, data)


class Protection:
    """Watches over `devices`, of which those with `protect` other than off are guarded.

    `accessor` says whose access a device serves (Intruders.accessor).
    """

    def __init__(
        self,
        devices: Iterable[VirtioMem],
        memslots: Memslots,
        measures: Measures,
        accessor: Callable[[], tuple[int, int] | None],
    ) -> None:
        self._memslots = memslots
        self._measures = measures
        self._guarded: set[str] = set()
        self._tried: dict[int, tuple[int, int]] = {}
        self.narrowing = False
        """The machine is halted, or about to be, to have its memslots narrowed."""
        for device in devices:
            device.intruders.accessor = accessor
            device.intruders.on_intrusion = Sentry(device, measures).on_intrusion
            if device.spec.protect != "off":
                self._guarded.add(device.identifier)

    def on_fault(self, vcpu: HypervisorVcpu) -> bool:
        """KVM could not give `vcpu` the memory that it wants: may it try again, after a halt?

        Not if it is at the same instruction as last time and no memory has come or gone since:
        then unplugged memory is not the reason.
        """
        attempt = (vcpu.instruction_pointer(), self._memslots.changes)
        if not self._guarded or self._tried.get(vcpu.index) == attempt:
            return False
        self._tried[vcpu.index] = attempt
        if not self.narrowing:
            self.narrowing = True
            self._measures.halt(self._narrow)
        return True

    def _narrow(self) -> None:
        """All vCPUs are parked."""
        self.narrowing = False
        try:
            self._memslots.narrow(self._guarded)
        except HostError as error:
            self._measures.fail(str(error))
        else:
            self._measures.go_on()
