"""Interrupts of a device that is passed on: its kinds, and the eventfds between VFIO and KVM.

The device writes into an eventfd, KVM takes it from there: we see nothing of it. A vector that the
guest masks stays switched on at the device; what comes waits in its eventfd, which is its pending
bit. What the guest has programmed is msi.py's and msix.py's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from minivmm.errors import HostError
from minivmm.irq import EventInterrupts, EventRoute, IrqWire
from minivmm.vfio.abi import Irq
from minivmm.vfio.device import VfioDevice

Message = tuple[int, int]
"""(64-bit address, 32-bit data)."""


class Interrupts:
    """The interrupts of `device`. `complain` gets a line for what the host refuses."""

    def __init__(
        self,
        device: VfioDevice,
        controller: EventInterrupts,
        complain: Callable[[str], None],
    ) -> None:
        self._device = device
        self._controller = controller
        self._complain = complain
        self._wire: IrqWire | None = None
        self._routes: dict[int, EventRoute] = {}
        self._opened: set[int] = set()
        self.kind: Irq | None = None
        """What is switched on; None: nothing."""
        self._count = 0

    def use_pin(self, gsi: int) -> None:
        """Its pin is wired to GSI `gsi`."""
        self._wire = self._controller.wire(gsi)

    def switch(self, kind: Irq | None, count: int = 1) -> None:
        """Use `kind` of interrupt, MSI with `count` vectors, and no other. MSI-X starts masked."""
        if kind == Irq.INTX and self._wire is None:
            kind = None
        if (kind, count) == (self.kind, self._count):
            return
        try:
            self._leave()
            self.kind, self._count = kind, count
            self._enter(kind, count)
        except (OSError, HostError) as error:
            name = "interrupts" if kind is None else kind.name
            self._complain(f"the host does not give it {name}: {error}")

    def send(self, vector: int, message: Message) -> None:
        """Have `vector` send `message`, and what is due of it now."""
        try:
            self._route(vector).route(*message)
            if self.kind == Irq.MSIX and vector not in self._opened:
                self._device.signal_by(Irq.MSIX, [self._route(vector).fd], start=vector)
                self._opened.add(vector)
        except (OSError, HostError) as error:
            self._complain(f"the host does not give it vector {vector}: {error}")

    def hold(self, vector: int) -> None:
        """Keep what comes of `vector` until the next send()."""
        if vector in self._routes:
            self._routes[vector].mute()

    def due(self, vector: int) -> bool:
        """Did `vector` come while it was held?"""
        return vector in self._routes and self._routes[vector].due

    def _enter(self, kind: Irq | None, count: int) -> None:
        if kind == Irq.INTX and self._wire:
            self._wire.connect(True)
            self._device.signal_by(Irq.INTX, [self._wire.trigger])
            self._device.unmask_by(Irq.INTX, self._wire.served)
        elif kind == Irq.MSI:
            fds = [self._route(vector).fd for vector in range(count)]
            if fewer := self._device.signal_by(Irq.MSI, fds):
                self._device.signal_by(Irq.MSI, fds[:fewer])
        elif kind == Irq.MSIX:
            irq = self._device.irq(Irq.MSIX)
            silent = [-1] * (1 if irq.resizable else irq.count)
            if fewer := self._device.signal_by(Irq.MSIX, silent):
                self._device.signal_by(Irq.MSIX, silent[:fewer])

    def _leave(self) -> None:
        if self.kind is not None:
            kind, self.kind = self.kind, None
            self._device.switch_off(kind)
        if self._wire:
            self._wire.connect(False)
        for route in self._routes.values():
            route.mute()
            with suppress(BlockingIOError):
                os.eventfd_read(route.fd)  # nobody waits for what came last
        self._opened.clear()

    def _route(self, vector: int) -> EventRoute:
        if vector not in self._routes:
            self._routes[vector] = self._controller.msi()
        return self._routes[vector]
