"""The multiport console device: queues, and the control messages that announce and open ports.

What flows through the ports is port.py's and its owner's matter; the guest agent owns all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minivmm.devices.virtio_console.port import Port
from minivmm.devices.virtio_console.spec import VirtioConsoleSpec
from minivmm.saved import Form, build, parse, require
from minivmm.spec.virtio_console import (
    CONTROL_RECEIVE_QUEUE,
    CONTROL_TRANSMIT_QUEUE,
    DEVICE_ID,
    ConsoleConfig,
    ControlMessage,
    Event,
    Feature,
    port_of_queue,
    receive_queue,
)
from minivmm.virtio.device import DeviceTraits, VirtioDevice
from minivmm.virtio.queue.queue import VirtQueue

_FORM = Form("minivmm.devices.virtio_console.saved", "CONSOLE")

CONSOLE_PORT, CONTROL_PORT = 0, 1
PORT_NAMES = (
    "minivmm.console",
    "minivmm.control",
    *(f"minivmm.stream.{number}" for number in range(2, 11)),
)
"""Names of the ports, as the guest sees them in /sys/class/virtio-ports/*/name.

Port 0 is the one that drivers without MULTIPORT know; Linux calls it hvc0.

Three commands with input at once, or four without; two queues a port cost a driver 42 exits.
"""

QUEUE_SIZE = 16
"""Descriptors of each queue. Linux fills receive queues with a page per descriptor: 64 KiB each."""

_POSTED = {Event.PORT_ADD, Event.PORT_NAME, Event.CONSOLE_PORT, Event.PORT_OPEN}
"""Messages to the driver."""
_CONFIG = ConsoleConfig(max_nr_ports=len(PORT_NAMES)).build()
_EMERGENCY = ConsoleConfig.OFFSETS["emerg_wr"]


class VirtioConsole(VirtioDevice):
    """Ports between host and guest; of those, port 0 is a console."""

    traits = DeviceTraits(
        device_id=DEVICE_ID,
        name="virtio-console",
        queue_sizes=(QUEUE_SIZE,) * (2 * len(PORT_NAMES) + 2),
        config_size=ConsoleConfig.SIZE,
        pci_class=0x078000,  # communication controller, other
        vectors=2,
    )

    def __init__(self, spec: VirtioConsoleSpec | None = None) -> None:
        spec = spec or VirtioConsoleSpec()
        super().__init__(spec.id, spec)
        self.lives = 0
        """How many times the guest went on in another process."""
        self.on_restore: Callable[[], None] = lambda: None
        """Called when it has, with `lives` increased; the agent's host side sets it."""
        self._multiport = False
        self._ports_added = False
        self.ports = tuple(self._make_port(number) for number in range(len(PORT_NAMES)))
        # Messages that wait for a buffer. Keyed, so that a driver which asks again and again but
        # never supplies buffers cannot make it grow.
        self._outbox: dict[tuple[int, Event], int] = {}
        self._ready: set[int] = set()

    def offered_features(self) -> int:
        """MULTIPORT and EMERG_WRITE.

        SIZE is not: specification and Linux disagree about which of rows and columns comes first
        (5.3.6.2; Linux drivers/char/virtio_console.c, struct virtio_console_resize).
        """
        return 1 << Feature.MULTIPORT | 1 << Feature.EMERG_WRITE

    def accept_features(self, features: int) -> bool:
        """A driver without MULTIPORT has the console and nothing else."""
        self._multiport = bool(features >> Feature.MULTIPORT & 1)
        return super().accept_features(features)

    def start(self, queues: tuple[VirtQueue | None, ...]) -> None:
        """Without MULTIPORT the console is open from now on, as nobody would say so."""
        if not self._multiport:
            self.ports[CONSOLE_PORT].set_guest_open(True)

    def config_space(self) -> bytes:
        """max_nr_ports; a size belongs to a feature that is not offered."""
        return _CONFIG

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver can print a character at any time, even before all negotiation (5.3.5)."""
        if offset == _EMERGENCY:
            self.ports[CONSOLE_PORT].on_data(data[:1])

    def handle_queue(self, index: int, queue: VirtQueue) -> None:
        """Data or control messages in either direction. Raises DeviceBroken for bad rings."""
        if not self._multiport and index >= CONTROL_RECEIVE_QUEUE:
            return
        if index == CONTROL_TRANSMIT_QUEUE:
            wanted = self._handle_messages(queue)
        elif index == CONTROL_RECEIVE_QUEUE:
            wanted = self._flush_outbox(queue)
        else:
            port = self.ports[port_of_queue(index)]
            receives = index == receive_queue(port.id)
            wanted = port.handle_receive(queue) if receives else port.handle_transmit(queue)
        if wanted:
            self.signals.queue(index)

    def forget_queue(self, index: int) -> None:
        """Buffers that wait for data of the host belong to the driver again (GEN-D-7)."""
        if index not in (CONTROL_RECEIVE_QUEUE, CONTROL_TRANSMIT_QUEUE):
            port = self.ports[port_of_queue(index)]
            if index == receive_queue(port.id):
                port.forget_buffers()

    def reset(self) -> None:
        """Forget the driver; owners of open ports are told that the guest closed them."""
        self._outbox.clear()
        self._ready.clear()
        self._ports_added = False
        for port in self.ports:
            port.forget_driver()

    def on_broken(self) -> None:
        """Nothing passes a port any more: their owners would wait for ever."""
        for port in self.ports:
            port.forget_driver()

    # -- saved state -----------------------------------------------------------------------------

    def save_state(self) -> bytes:
        """What the driver was told and is to be told, and every port."""
        outbox = [
            {"port": number, "event": event, "value": value}
            for (number, event), value in self._outbox.items()
        ]
        return build(
            _FORM,
            features=self.features,
            lives=self.lives,
            ports_added=self._ports_added,
            outbox=outbox,
            ready=sum(1 << number for number in self._ready),
            ports=[port.save() for port in self.ports],
        )

    def load_state(self, data: bytes) -> None:
        """Take it over. Owners of ports learn of it by `on_restore`. Raises BadState."""
        saved = parse(self.identifier, _FORM, data)
        self._judge(saved)
        self.features = saved.features
        self._multiport = bool(saved.features >> Feature.MULTIPORT & 1)
        self.lives = saved.lives
        self._ports_added = saved.ports_added
        self._outbox = {(one.port, Event(one.event)): one.value for one in saved.outbox}
        self._ready = {port.id for port in self.ports if saved.ready >> port.id & 1}
        for port, state in zip(self.ports, saved.ports, strict=True):
            port.load(state)

    def adopt(self, queues: tuple[VirtQueue | None, ...]) -> None:
        """Ports have their empty buffers back."""
        for port in self.ports:
            queue = queues[receive_queue(port.id)]
            if queue is not None and (self._multiport or port.id == CONSOLE_PORT):
                port.adopt(queue.in_flight)

    def on_restored(self) -> None:
        """The owners that the guest knew of are gone."""
        self.lives = self.lives + 1 & 0xFFFF_FFFF
        self.on_restore()

    def _judge(self, saved: Any) -> None:
        """Raises BadState unless a guest could have brought a console into that state."""
        name, count = self.identifier, len(self.ports)
        require(len(saved.ports) == count, name, "ports", len(saved.ports), f"it has {count}")
        known = not saved.ready >> count
        require(known, name, "ready ports", f"{saved.ready:#x}", f"it has {count} ports")
        keys = [(one.port, one.event) for one in saved.outbox]
        for number, event in keys:
            right = number < count and event in _POSTED
            require(right, name, "message", f"{event} of port {number}", "it sends no such thing")
        require(len(set(keys)) == len(keys), name, "messages", len(keys), "some are there twice")
        for number, port in enumerate(saved.ports):
            empty = not (port.drained and port.backlog)
            require(empty, name, f"port {number}", "drained", "it has something to be sent")

    def inspect(self) -> dict[str, object]:
        """State of every port."""
        ports = {port.id: port.inspect() for port in self.ports}
        return {**super().inspect(), "unsent-messages": len(self._outbox), "ports": ports}

    def _make_port(self, number: int) -> Port:
        # `signals` exists only once the device is attached, hence the late look-up.
        return Port(
            number,
            PORT_NAMES[number],
            kick=lambda index: self.signals.kick(index),
            announce=lambda: self._announce_open(number),
        )

    def _announce_open(self, number: int) -> None:
        """Tell the driver whether the host has the port open, if it knows the port."""
        if number in self._ready:
            self._post(number, Event.PORT_OPEN, int(self.ports[number].host_open))
            self.signals.kick(CONTROL_RECEIVE_QUEUE)

    def _handle_messages(self, queue: VirtQueue) -> bool:
        """Act on the driver's messages; True if the driver wants an interrupt.

        A message is acted on before its buffer is returned: Linux waits for that, and relies on it
        when a port is closed (no input arrives afterwards).
        """
        took = False
        for chain in queue.chains():
            data = chain.read(ControlMessage.SIZE)
            if len(data) == ControlMessage.SIZE:
                self._handle_message(ControlMessage.parse(data))
            else:
                self.signals.trace("bad-message", size=len(data))
            queue.complete(chain)
            took = True
        if self._outbox:
            self.signals.kick(CONTROL_RECEIVE_QUEUE)
        return queue.publish() if took else False

    def _handle_message(self, message: ControlMessage) -> None:
        if message.event == Event.DEVICE_READY:
            self._handle_device_ready(message.value)
        elif message.id >= len(self.ports):
            self.signals.trace("bad-message", port=message.id, event=message.event)
        elif message.event == Event.PORT_READY:
            self._handle_port_ready(message.id, message.value)
        elif message.event == Event.PORT_OPEN:
            self.signals.trace("port-open", port=message.id, opened=message.value)
            self.ports[message.id].set_guest_open(bool(message.value))
        else:
            self.signals.trace("bad-message", port=message.id, event=message.event)

    def _handle_device_ready(self, value: int) -> None:
        if not value:
            self.signals.trace("driver-failed")
            return
        if self._ports_added:  # no port may be added that exists (5.3.6.2)
            return
        self._ports_added = True
        for port in self.ports:
            self._post(port.id, Event.PORT_ADD, 1)

    def _handle_port_ready(self, number: int, value: int) -> None:
        if not value:
            self.signals.trace("port-failed", port=number)
            return
        self._ready.add(number)
        self._post(number, Event.PORT_NAME, 1)
        if number == CONSOLE_PORT:
            self._post(number, Event.CONSOLE_PORT, 1)
        self._post(number, Event.PORT_OPEN, int(self.ports[number].host_open))

    def _post(self, number: int, event: Event, value: int) -> None:
        """Put a message behind all others; a waiting one of the same kind is replaced."""
        self._outbox.pop((number, event), None)
        self._outbox[number, event] = value

    def _flush_outbox(self, queue: VirtQueue) -> bool:
        """Write waiting messages into the driver's buffers; True if it wants an interrupt."""
        wrote = False
        chains = queue.chains()  # bounded, other than popping them
        while self._outbox and (chain := next(chains, None)) is not None:
            number, event = next(iter(self._outbox))
            message = ControlMessage(number, event, self._outbox[number, event]).build()
            if event == Event.PORT_NAME:
                message += self.ports[number].name.encode()
            wrote = True
            if chain.writable < len(message):
                self.signals.trace("short-buffer", size=chain.writable, message=len(message))
                queue.complete(chain)
                break
            del self._outbox[number, event]
            chain.write(message)
            queue.complete(chain, len(message))
        return queue.publish() if wrote else False
