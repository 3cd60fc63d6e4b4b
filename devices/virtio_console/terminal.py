"""Terminal: a port of the virtio console as the console that a person types at.

It has the face of the serial port's input (devices/serial.py): who types need not know which it is.
"""

from __future__ import annotations

from collections.abc import Callable

from minivmm.devices.virtio_console.port import Port

BACKLOG_SIZE = 64 * 1024
"""Bytes of input kept for a guest that does not read yet; `receive` refuses more."""


class Terminal:
    """`port` belongs to it. All methods run with the machine's lock held."""

    def __init__(self, port: Port) -> None:
        self.on_output: Callable[[bytes], None] = lambda data: None
        """Called with what the guest writes."""
        self.on_space: Callable[[], None] = lambda: None
        """Called when a `receive` that took less than it was offered may be repeated."""
        self._port = port
        self._refused = False
        port.on_data = lambda data: self.on_output(data)
        port.on_taken = lambda count: self._offer_space()
        port.on_guest_open = lambda opened: self._offer_space()

    def receive(self, data: bytes) -> int:
        """Keys for the guest, which gets them once its driver is up; how many bytes were taken."""
        taken = data[: max(0, BACKLOG_SIZE - self._port.pending)]
        self._refused = len(taken) < len(data)
        self._port.send(taken)
        return len(taken)

    def _offer_space(self) -> None:
        if self._refused and self._port.pending < BACKLOG_SIZE:
            self._refused = False
            self.on_space()
