"""PassingQueue: a queue in front of another, for those who change or watch what passes."""

from __future__ import annotations

from minivmm.virtio.queue.queue import Chain, VirtQueue


class PassingQueue:
    """What of a VirtQueue is `real`'s in any case; how chains pass is the heirs' matter."""

    def __init__(self, real: VirtQueue) -> None:
        self.real = real
        self.index = real.index
        self.size = real.size

    @property
    def interrupted(self) -> bool:
        """chains() stopped at its bound."""
        return self.real.interrupted

    @interrupted.setter
    def interrupted(self, value: bool) -> None:
        self.real.interrupted = value

    @property
    def in_flight(self) -> tuple[Chain, ...]:
        """Chains that the device has."""
        return self.real.in_flight

    def close(self) -> None:
        """The transport calls it at reset."""
        self.real.close()

    def inspect(self) -> dict[str, object]:
        """Addresses and indices, for people."""
        return self.real.inspect()
