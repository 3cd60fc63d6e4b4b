"""The smallest device model: it sends back what it is sent. For tests of everything but devices."""

from __future__ import annotations

from minivmm.virtio.device import DeviceTraits, VirtioDevice
from minivmm.virtio.queue.queue import VirtQueue


class EchoDevice(VirtioDevice):
    """Two queues of 64 and 16 descriptors, feature bit 0, eight bytes of configuration space.

    Tests change `config`, `acceptable`, and `failure` (raised by the next handle_queue).
    """

    traits = DeviceTraits(device_id=42, name="echo", queue_sizes=(64, 16), config_size=8)

    def __init__(self, identifier: str = "echo0") -> None:
        super().__init__(identifier)
        self.config = bytearray(range(8))
        self.acceptable = True
        self.failure: Exception | None = None
        self.handled: list[int] = []
        """Index of every handle_queue call."""
        self.started: list[tuple[VirtQueue | None, ...]] = []
        self.resets = 0
        self.system_resets = 0

    def offered_features(self) -> int:
        """Bit 0, which means nothing."""
        return 1

    def accept_features(self, features: int) -> bool:
        """As `acceptable` says."""
        return super().accept_features(features) and self.acceptable

    def config_space(self) -> bytes:
        """The bytes of `config`."""
        return bytes(self.config)

    def write_config(self, offset: int, data: bytes) -> None:
        """All of it is writable."""
        self.config[offset : offset + len(data)] = data

    def start(self, queues: tuple[VirtQueue | None, ...]) -> None:
        """Remember the queues."""
        self.started.append(queues)

    def handle_queue(self, index: int, queue: VirtQueue) -> None:
        """Copy the readable part to the writable part, as far as it goes."""
        self.handled.append(index)
        if self.failure:
            failure, self.failure = self.failure, None
            raise failure
        for chain in queue.chains():
            data = chain.read(chain.writable)
            chain.write(data)
            queue.complete(chain, len(data))
        if queue.publish():
            self.signals.queue(index)

    def save_state(self) -> bytes:
        """The features that were chosen, and the configuration space."""
        return super().save_state() + bytes(self.config)

    def load_state(self, data: bytes) -> None:
        """Both. Raises BadState."""
        own = len(data) - self.traits.config_size
        super().load_state(data[:own])
        self.config[:] = data[own:]

    def reset(self) -> None:
        """Count it."""
        self.resets += 1

    def system_reset(self) -> None:
        """Count it."""
        self.system_resets += 1
