"""Passthrough: the host's devices of one machine: opened, shown to KVM and to the guest, released.

Which memory they may use is dma.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minivmm.bus import Windows
from minivmm.closing import Closing
from minivmm.devices.vfio_pci.spec import VfioPciSpec
from minivmm.errors import HostError
from minivmm.irq import EventInterrupts
from minivmm.kvm.hypervisor import HypervisorVm
from minivmm.loop import EventLoop
from minivmm.trace import Trace

if TYPE_CHECKING:
    from minivmm.devices.vfio_pci.function import VfioPciFunction
    from minivmm.vfio.container import Container


@dataclass(frozen=True)
class Surroundings:
    """What a machine has for devices of the host."""

    vm: HypervisorVm
    interrupts: EventInterrupts
    windows: Windows
    """They show a device's memory to the guest."""
    loop: EventLoop
    """Hears what the host has to say about a device."""
    warn: Callable[[str], None]
    """Gets lines for the user."""


def open_devices(
    specs: Sequence[VfioPciSpec], around: Surroundings, owned: ExitStack
) -> Passthrough | None:
    """The host's devices, if there are to be any; `owned` closes them. Raises HostError."""
    return owned.enter_context(Passthrough(specs, around)) if specs else None


class Passthrough(Closing):
    """The devices of `specs`, one or more, opened. Raises HostError.

    To be closed after the functions, when no device can reach memory any more.
    """

    def __init__(self, specs: Sequence[VfioPciSpec], around: Surroundings) -> None:
        from minivmm.vfio.host import HostDevices  # few machines have devices of the host

        self._around = around
        wish = next((one.iommufd for one in specs if one.iommufd is not None), None)
        try:
            places = [one.place() for one in specs]
            self._hosts = HostDevices(places, iommufd=wish, show=around.vm.show_vfio)
        except HostError as error:
            names = ", ".join(one.id for one in specs)
            raise HostError(f"{names}: {error}") from error
        self._devices = dict(zip((one.id for one in specs), self._hosts.devices, strict=True))

    @property
    def container(self) -> Container:
        """Where memory is mapped for all of them."""
        return self._hosts.container

    def build(self, spec: VfioPciSpec, trace: Trace) -> VfioPciFunction:
        """The PCI function of the device that was opened for `spec`. Raises HostError."""
        from minivmm.devices.vfio_pci.function import VfioPciFunction

        device = self._devices[spec.id]
        function = VfioPciFunction(
            spec.id,
            device,
            interrupts=self._around.interrupts,
            windows=self._around.windows,
            watch=self._around.loop.watch_eventfd,
            trace=trace,
            warn=self._around.warn,
        )
        if device.fd in self._hosts.files:  # KVM would hold on to it
            fd = device.fd
            function.on_gone = lambda: self._around.vm.show_vfio(fd, shown=False)
        return function

    def close(self) -> None:
        """Give everything back to the host. Harmless when repeated."""
        self._hosts.close()
