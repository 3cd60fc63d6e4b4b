"""The notification area of virtio-pci: one doorbell per queue (virtio-spec 4.1.4.4, 4.1.5.2).

Which queue rings, its doorbell's address says. What a driver writes there says it again, and with
NOTIFICATION_DATA how far the ring is filled; but KVM's ioeventfds count writes and drop values. So
values are never used: the ring itself is looked at. Odd ones are traced where they arrive.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from minivmm.bus import Doorbells
from minivmm.spec.virtio import Feature
from minivmm.virtio.transport import Transport

STRIDE = 4
"""Bytes from one doorbell to the next: notify_off_multiplier, right for both widths (PCI-D-18)."""
INDEX_WIDTH, DATA_WIDTH = 2, 4
"""Bytes of a doorbell write: the queue's name; with NOTIFICATION_DATA more (PCI-V-9)."""
CONFIG_DATA = 0x5100
"""queue_notif_config_data of queue 0, and up: never equal to the index that it stands for."""


class NotificationArea:
    """The BusDevice of all doorbells of a device, and their bindings to `doorbells`."""

    def __init__(self, transport: Transport, doorbells: Doorbells) -> None:
        self._transport = transport
        self._doorbells = doorbells
        self._queues = range(len(transport.queue_registers))
        self._unbind: list[Callable[[], None]] = []

    @property
    def size(self) -> int:
        """Bytes of the area (PCI-D-17, PCI-D-18)."""
        return STRIDE * len(self._queues)

    def config_data(self, index: int) -> int:
        """queue_notif_config_data: the name of queue `index` in doorbells, if negotiated."""
        named = self._transport.negotiated(Feature.NOTIF_CONFIG_DATA)
        return CONFIG_DATA + index & 0xFFFF if named else 0

    def move(self, base: int | None) -> None:
        """The area now lies at guest physical address `base`, or nowhere (reference F.5)."""
        for unbind in self._unbind:
            unbind()
        self._unbind.clear()
        if base is None or not self._transport.device.options.ioeventfd:
            return
        for index in self._queues:
            ring = partial(self._transport.kick, index)
            for width in self._widths():
                self._unbind.append(self._doorbells.bind(base + STRIDE * index, width, ring))

    def read(self, offset: int, size: int) -> int:
        """Doorbells read as nothing."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """A doorbell that came as an exit. Writes of other places and widths are dropped."""
        index, rest = divmod(offset, STRIDE)
        if rest or index not in self._queues or size not in self._widths():
            return
        if not self._is_proper(index, size, value):
            self._transport.trace("odd-doorbell", queue=index, size=size, value=f"{value:#x}")
        self._transport.kick(index)

    def _widths(self) -> tuple[int, ...]:
        """Drivers may turn NOTIFICATION_DATA down, so both widths may come if it is offered."""
        offered = bool(self._transport.device_features & Feature.NOTIFICATION_DATA.mask)
        return (INDEX_WIDTH, DATA_WIDTH) if offered else (INDEX_WIDTH,)

    def _is_proper(self, index: int, size: int, value: int) -> bool:
        """Does the write have the width and the name of queue `index` that were negotiated?"""
        told = self._transport.negotiated(Feature.NOTIFICATION_DATA)
        name = self.config_data(index) or index
        return size == (DATA_WIDTH if told else INDEX_WIDTH) and value & 0xFFFF == name
