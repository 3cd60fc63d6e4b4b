"""Interrupts over KVM: pins by KVM_IRQ_LINE, messages by irqfd and the GSI routing table.

The device side of it is irq.InterruptController; nothing else knows that KVM delivers.
"""

from __future__ import annotations

import os

from minivmm.kvm.hypervisor import HypervisorVm
from minivmm.spec.platform import FIRST_MSI_GSI


class GsiLine:
    """One IOAPIC pin."""

    def __init__(self, vm: HypervisorVm, gsi: int) -> None:
        self._vm = vm
        self._gsi = gsi

    def set(self, level: bool) -> None:
        """Assert or release the pin."""
        self._vm.set_irq_line(self._gsi, level)


class MsiGsi:
    """One message-signalled interrupt: a GSI whose route is the message, fired by an eventfd."""

    def __init__(self, controller: KvmInterrupts, gsi: int) -> None:
        self.gsi = gsi
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._controller = controller

    def route(self, address: int, data: int) -> None:
        """Deliver later signals as this message; the first route arms the irqfd."""
        self._controller.set_route(self, address, data)

    def signal(self) -> None:
        """Send the message: one write, no exit to us, from any thread."""
        os.eventfd_write(self.fd, 1)


class KvmInterrupts:
    """The InterruptController of a machine; owns the GSIs from FIRST_MSI_GSI on."""

    def __init__(self, vm: HypervisorVm) -> None:
        self._vm = vm
        self._messages: list[MsiGsi] = []
        self._routes: dict[int, tuple[int, int]] = {}

    def line(self, gsi: int) -> GsiLine:
        """The pin `gsi` (0..23)."""
        return GsiLine(self._vm, gsi)

    def msi(self) -> MsiGsi:
        """A new message-signalled interrupt."""
        message = MsiGsi(self, FIRST_MSI_GSI + len(self._messages))
        self._messages.append(message)
        return message

    def set_route(self, message: MsiGsi, address: int, data: int) -> None:
        """Route `message`; KVM_SET_GSI_ROUTING replaces the whole table (reference F.6)."""
        known = message.gsi in self._routes
        if self._routes.get(message.gsi) == (address, data):
            return
        self._routes[message.gsi] = (address, data)
        self._vm.set_routes(self._routes)
        if not known:
            self._vm.set_irqfd(message.fd, message.gsi)

    def close(self) -> None:
        """Close every eventfd; the VM must be gone or about to go."""
        for message in self._messages:
            os.close(message.fd)
        self._messages.clear()
