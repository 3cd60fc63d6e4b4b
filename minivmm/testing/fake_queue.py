"""Queues and signals in plain Python, to test a device model without rings, PCI or guest memory.

Tests of the whole path, with real rings, use the driver side in testing/driver.py instead.
"""

from __future__ import annotations

from collections.abc import Iterator

from minivmm.virtio.queue.queue import Chain


class FakeSignals:
    """Records what a device tells the outside world."""

    def __init__(self) -> None:
        self.queue_interrupts: list[int] = []
        self.config_changes: list[bool] = []
        """One entry a change: was the driver notified?"""
        self.kicks: list[int] = []
        self.events: list[tuple[str, dict[str, object]]] = []

    def queue(self, index: int) -> None:
        """Record an interrupt of queue `index`."""
        self.queue_interrupts.append(index)

    def config(self, *, notify: bool = True) -> None:
        """Record a configuration change."""
        self.config_changes.append(notify)

    def kick(self, index: int) -> None:
        """Record that queue `index` should be handled."""
        self.kicks.append(index)

    def trace(self, name: str, **fields: object) -> None:
        """Record a trace event."""
        self.events.append((name, fields))


class FakeChain:
    """A chain with `request` in its readable part and room for `writable` bytes."""

    def __init__(self, request: bytes, writable: int) -> None:
        self._request = request
        self.readable = len(request)
        self.writable = writable
        self.descriptors = 2
        self.reads = 0
        """How often the device read the request; more than once would be a race with the guest."""
        self.written = b""
        self.used: int | None = None
        """used.len once the chain was completed."""

    def read(self, limit: int | None = None) -> bytes:
        """The first `limit` bytes of the request."""
        self.reads += 1
        return self._request[:limit]

    @property
    def writable_parts(self) -> tuple[tuple[int, int], ...]:
        """None: its buffers are nowhere in guest memory."""
        return ()

    def write(self, data: bytes, at: int = 0) -> None:
        """Keep `data`. Raises ValueError if there is no room."""
        if at + len(data) > self.writable:
            raise ValueError(f"{len(data)} bytes at {at} do not fit {self.writable}")
        self.written = self.written[:at].ljust(at, b"\0") + data


class FakeQueue:
    """A queue whose driver always wants interrupts."""

    index = 0

    def __init__(self, *chains: FakeChain) -> None:
        self._waiting = list(chains)
        self._completed = False
        self.size = max(1, len(chains))
        self.interrupted = False

    @property
    def in_flight(self) -> tuple[FakeChain, ...]:
        """None: its chains are completed at once."""
        return ()

    def pop(self) -> FakeChain | None:
        """The next chain, or None."""
        return self._waiting.pop(0) if self._waiting else None

    def chains(self) -> Iterator[FakeChain]:
        """All chains, one by one."""
        while chain := self.pop():
            yield chain

    def complete(self, chain: Chain, written: int = 0) -> None:
        """Note `written` as the chain's used length."""
        assert isinstance(chain, FakeChain)
        chain.used = written
        self._completed = True

    def publish(self) -> bool:
        """True if something was completed since the last call."""
        wanted, self._completed = self._completed, False
        return wanted

    def close(self) -> None:
        """Forget the waiting chains."""
        self._waiting.clear()

    def inspect(self) -> dict[str, object]:
        """Number of waiting chains."""
        return {"waiting": len(self._waiting)}
