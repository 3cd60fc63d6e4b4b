"""The guest's half of a virtio console, without rings: plays Linux's virtio_console over a device.

It behaves as drivers/char/virtio_console.c does where that matters: one opener a port, a page per
receive buffer, buffers come back when read, writes wait for the host. Threads may use it.
"""

from __future__ import annotations

import struct
import threading
from collections import deque
from collections.abc import Iterator

from minivmm.devices.virtio_console.device import VirtioConsole
from minivmm.memory.guest import GuestMemory
from minivmm.spec.virtio_console import (
    CONTROL_RECEIVE_QUEUE,
    CONTROL_TRANSMIT_QUEUE,
    NO_PORT,
    Event,
    Feature,
    port_of_queue,
    receive_queue,
    transmit_queue,
)
from minivmm.virtio.queue.queue import Chain

PAGE = 4096
LARGEST_WRITE = 32 * 1024
_MESSAGE = struct.Struct("<IHH")


class GuestBuffer:
    """A chain: `data` for the device to read, or room for `writable` bytes."""

    def __init__(self, data: bytes = b"", writable: int = 0) -> None:
        self.data = data
        self.readable = len(data)
        self.writable = writable
        self.descriptors = 1

    def read(self, limit: int | None = None) -> bytes:
        """virtio.queue.Chain."""
        return self.data[:limit]

    @property
    def writable_parts(self) -> tuple[tuple[int, int], ...]:
        """virtio.queue.Chain: it is nowhere in guest memory."""
        return ()

    def write(self, data: bytes, at: int = 0) -> None:
        """virtio.queue.Chain."""
        if at + len(data) > self.writable:
            raise ValueError(f"{len(data)} bytes at {at} do not fit {self.writable}")
        self.data = self.data[:at].ljust(at, b"\0") + data


class GuestQueue:
    """A virtqueue: the device's face, and `available` and `used` for the driver."""

    def __init__(self, index: int, size: int) -> None:
        self.index = index
        self.size = size
        self.interrupted = False
        self.available: deque[GuestBuffer] = deque()
        self.used: deque[GuestBuffer] = deque()
        self._taken: list[GuestBuffer] = []
        self._completed: deque[GuestBuffer] = deque()

    @property
    def in_flight(self) -> tuple[GuestBuffer, ...]:
        """virtio.queue.VirtQueue, as the others."""
        return tuple(self._taken)

    def pop(self) -> GuestBuffer | None:
        """The next one."""
        if not self.available:
            return None
        self._taken.append(self.available.popleft())
        return self._taken[-1]

    def chains(self) -> Iterator[GuestBuffer]:
        """At most `size` chains."""
        for _ in range(self.size):
            chain = self.pop()
            if chain is None:
                return
            yield chain
        self.interrupted = True

    def complete(self, chain: Chain, written: int = 0) -> None:
        """Hand a chain back."""
        assert isinstance(chain, GuestBuffer)
        assert written == (len(chain.data) if chain.writable else 0)
        self._taken.remove(chain)
        self._completed.append(chain)

    def publish(self) -> bool:
        """Show the driver what was completed."""
        completed = bool(self._completed)
        self.used += self._completed
        self._completed.clear()
        return completed

    def close(self) -> None:
        """Forget everything."""
        self.available.clear()

    def inspect(self) -> dict[str, object]:
        """Number of available buffers."""
        return {"available": len(self.available)}


class GuestPort:
    """What the driver knows of a port."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.open = False
        self.host_open = False
        self.unread: deque[GuestBuffer] = deque()


class ConsoleGuest:
    """The driver, and the Signals of its device. `lock` is the machine's."""

    def __init__(self, device: VirtioConsole, lock: threading.RLock) -> None:
        self.device = device
        self.changed = threading.Condition(lock)
        self.events: list[tuple[str, dict[str, object]]] = []
        self.ports: dict[int, GuestPort] = {}
        self._queues: list[GuestQueue] = []
        self._busy: set[int] = set()
        self._again: set[int] = set()
        device.attach(GuestMemory(), self)

    # -- Signals -----------------------------------------------------------------------------------

    def queue(self, index: int) -> None:
        """The device interrupts: take used buffers, as the driver's callbacks do."""
        queue = self._queues[index]
        if index == CONTROL_RECEIVE_QUEUE:
            while queue.used:
                if message := queue.used.popleft().data:
                    self._handle_message(message)
                self._add(index, GuestBuffer(writable=PAGE))
        elif index == receive_queue(port_of_queue(index)):
            port = self.ports[port_of_queue(index)]
            port.unread += queue.used
            queue.used.clear()
            if not port.open:
                self._discard(port_of_queue(index))
        else:
            queue.used.clear()
        self.changed.notify_all()

    def config(self, *, notify: bool = True) -> None:
        """Nothing in the configuration space changes."""

    def kick(self, index: int) -> None:
        """Handle a queue; kicks of a queue that is being handled come after that."""
        if not self._queues:
            return
        self._again.add(index)
        if index in self._busy:
            return
        self._busy.add(index)
        while index in self._again and self._queues:
            self._again.discard(index)
            queue = self._queues[index]
            self.device.handle_queue(index, queue)
            if queue.interrupted:
                queue.interrupted = False
                self._again.add(index)
        self._busy.discard(index)

    def trace(self, name: str, **fields: object) -> None:
        """Record a trace event."""
        self.events.append((name, fields))

    # -- what the driver does ----------------------------------------------------------------------

    def probe(self) -> None:
        """Set the device up, as virtcons_probe does."""
        with self.changed:
            assert self.device.accept_features(1 << 32 | 1 << Feature.MULTIPORT)
            sizes = self.device.traits.queue_sizes
            self._queues = [GuestQueue(index, size) for index, size in enumerate(sizes)]
            self.device.start(tuple(self._queues))
            for _ in range(sizes[CONTROL_RECEIVE_QUEUE]):
                self._add(CONTROL_RECEIVE_QUEUE, GuestBuffer(writable=PAGE))
            self.send_message(NO_PORT, Event.DEVICE_READY, 1)

    def reset(self) -> None:
        """Reset the device; whoever waits for a port gets end of file."""
        with self.changed:
            self._queues = []
            self.device.reset()
            for port in self.ports.values():
                port.open = port.host_open = False
            self.ports = {}
            self.changed.notify_all()

    def move(self, device: VirtioConsole) -> None:
        """Go on with `device`, which takes over the state of the one so far, in another process."""
        with self.changed:
            state, self.device = self.device.save_state(), device
            device.attach(GuestMemory(), self)
            device.load_state(state)
            device.adopt(tuple(self._queues) or (None,) * len(device.traits.queue_sizes))
            assert device.save_state() == state
            device.on_restored()
            for index in range(len(self._queues)):
                self.kick(index)

    def send_message(self, number: int, event: int, value: int) -> None:
        """Send a control message, and wait for it like Linux."""
        queue = self._queues[CONTROL_TRANSMIT_QUEUE]
        queue.used.clear()
        self._add(CONTROL_TRANSMIT_QUEUE, GuestBuffer(_MESSAGE.pack(number, event, value)))

    def _handle_message(self, data: bytes) -> None:
        number, event, value = _MESSAGE.unpack_from(data)
        if event == Event.PORT_ADD:
            self.ports[number] = GuestPort()
            queue = receive_queue(number)
            for _ in range(self._queues[queue].size):
                self._add(queue, GuestBuffer(writable=PAGE))
            self.send_message(number, Event.PORT_READY, 1)
        elif event == Event.PORT_NAME:
            self.ports[number].name = data[_MESSAGE.size :].decode()
        elif event == Event.PORT_OPEN:
            self.ports[number].host_open = bool(value)

    def _add(self, index: int, buffer: GuestBuffer) -> None:
        self._queues[index].available.append(buffer)
        self.kick(index)

    def _discard(self, number: int) -> None:
        unread = self.ports[number].unread
        while unread:
            unread.popleft()
            self._add(receive_queue(number), GuestBuffer(writable=PAGE))

    # -- what processes do -------------------------------------------------------------------------

    def open(self, number: int) -> None:
        """open(2). Raises OSError if somebody has the port open."""
        with self.changed:
            if self.ports[number].open:
                raise OSError(f"port {number} is open already")
            self.ports[number].open = True
            self.send_message(number, Event.PORT_OPEN, 1)

    def close(self, number: int) -> None:
        """The last close(2)."""
        with self.changed:
            if number in self.ports and self.ports[number].open:
                self.send_message(number, Event.PORT_OPEN, 0)
                self.ports[number].open = False
                self._discard(number)
                self.changed.notify_all()

    def read(self, number: int, limit: int = PAGE) -> bytes:
        """read(2): waits for data; b"" at end of file or when the port was closed or reset."""
        with self.changed:
            port = self.ports.get(number)
            if port is None:
                return b""
            self.changed.wait_for(lambda: port.unread or not port.host_open or not port.open)
            if not port.unread or not port.open:
                return b""
            buffer = port.unread[0]
            piece, buffer.data = buffer.data[:limit], buffer.data[limit:]
            if not buffer.data:
                port.unread.popleft()
                self._add(receive_queue(number), GuestBuffer(writable=PAGE))
            return piece

    def write(self, number: int, data: bytes) -> None:
        """write(2) of all of `data`: waits while the host has the port closed or the queue is full.

        Raises OSError if the port is closed or the device reset meanwhile.
        """
        with self.changed:
            port = self.ports.get(number)
            if port is None:
                raise OSError("no such port")
            while data:
                self.changed.wait_for(lambda: not port.open or self._writable(number, port))
                if not port.open:
                    raise OSError("port was closed")
                self._add(transmit_queue(number), GuestBuffer(data[:LARGEST_WRITE]))
                data = data[LARGEST_WRITE:]

    def _writable(self, number: int, port: GuestPort) -> bool:
        if not self._queues or not port.host_open:
            return False
        queue = self._queues[transmit_queue(number)]
        return len(queue.available) < queue.size
