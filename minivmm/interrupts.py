"""Interrupts over KVM: pins by KVM_IRQ_LINE or irqfd, messages by irqfd and the GSI routing table.

The device side of it is irq.InterruptController; nothing else knows that KVM delivers.
"""

from __future__ import annotations

import os
import select

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
        self._armed = False

    def route(self, address: int, data: int) -> None:
        """Deliver later signals as this message, and one that was kept; arms the irqfd."""
        self._controller.set_route(self, address, data)
        if not self._armed:
            self._controller.tie(self, armed=True)
            self._armed = True

    def mute(self) -> None:
        """Keep signals: the eventfd's counter stays, and KVM looks at it when it is armed again."""
        if self._armed:
            self._controller.tie(self, armed=False)
            self._armed = False

    @property
    def due(self) -> bool:
        """Was it signalled while muted?"""
        return not self._armed and _readable(self.fd)

    def signal(self) -> None:
        """Send the message: one write, no exit to us, from any thread."""
        os.eventfd_write(self.fd, 1)


class GsiWire:
    """A share in an IOAPIC pin: two eventfds between KVM and whoever pulls it (reference F.6)."""

    def __init__(self, vm: HypervisorVm, gsi: int) -> None:
        self._vm = vm
        self._gsi = gsi
        self._connected = False
        self.trigger = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.served = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def connect(self, connected: bool) -> None:
        """Let writes to `trigger` through, or not."""
        if connected != self._connected:
            self._vm.set_irqfd(self.trigger, self._gsi, assign=connected, resample=self.served)
            self._connected = connected

    def close(self) -> None:
        """Close the eventfds."""
        os.close(self.trigger)
        os.close(self.served)


class KvmInterrupts:
    """The InterruptController of a machine; owns the GSIs from FIRST_MSI_GSI on."""

    def __init__(self, vm: HypervisorVm) -> None:
        self._vm = vm
        self._messages: list[MsiGsi] = []
        self._wires: list[GsiWire] = []
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
        if self._routes.get(message.gsi) == (address, data):
            return
        self._routes[message.gsi] = (address, data)
        self._vm.set_routes(self._routes)

    def tie(self, message: MsiGsi, *, armed: bool) -> None:
        """Have KVM send `message` for writes to its eventfd, or not."""
        self._vm.set_irqfd(message.fd, message.gsi, assign=armed)

    def wire(self, gsi: int) -> GsiWire:
        """A new share in pin `gsi` (0..23)."""
        wire = GsiWire(self._vm, gsi)
        self._wires.append(wire)
        return wire

    def close(self) -> None:
        """Close every eventfd; the VM must be gone or about to go."""
        for message in self._messages:
            os.close(message.fd)
        self._messages.clear()
        for wire in self._wires:
            wire.close()
        self._wires.clear()


def _readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
