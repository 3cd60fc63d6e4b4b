"""What a transport tells while somebody follows requests: doorbells, chains, interrupts.

Nothing of this is in the way otherwise: the transport puts these in place of the real queues, their
handler and the notifier, and takes them out again. Device models may tell more of a chain, by its
identifier. All methods run with the machine's lock held.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from minivmm.trace import Detail, Trace
from minivmm.virtio.notifier import Notifier
from minivmm.virtio.queue.passing import PassingQueue
from minivmm.virtio.queue.queue import Chain, VirtQueue
from minivmm.virtio.queue.ring import RingQueue, RingState

MOST_TOLD = 1024
"""Chains that one interrupt event names; those before them are left out."""

Handle = Callable[[int, VirtQueue], None]


@dataclass(slots=True)
class _Line:
    """What is under way in one queue."""

    taken: dict[Chain, tuple[int, float]] = field(default_factory=dict)
    """Identifier, and when it was taken, of every chain that the device has; seconds."""
    used: deque[int] = field(default_factory=lambda: deque(maxlen=MOST_TOLD))
    """Chains handed back since the driver was last told, or did not want to be."""
    kick: int | None = None
    """Identifier of the kick that is being handled; None until it has brought a chain."""


class Tap:
    """One device's, from when it is put in place until it is taken out."""

    def __init__(self, source: str, trace: Trace, queues: int) -> None:
        self.source = source
        self._trace = trace
        self._lines = [_Line() for _ in range(queues)]

    def tell(self, name: str, **fields: object) -> None:
        """Tell that `name` happened in the course of a request; from any thread."""
        self._trace.tell(Detail.REQUESTS, self.source, name, fields)

    def identify(self, index: int, chain: Chain) -> int | None:
        """The identifier of a chain of queue `index`; None if it was taken before the tap was."""
        flight = self._lines[index].taken.get(chain)
        return None if flight is None else flight[0]

    def handler(self, handle: Handle) -> Handle:
        """`handle`, but what a queue's doorbell brings is told."""

        def handle_told(index: int, queue: VirtQueue) -> None:
            self._lines[index].kick = None
            handle(index, queue)

        return handle_told

    def on_taken(self, index: int, chain: Chain) -> None:
        """The device took `chain` from queue `index`."""
        line = self._lines[index]
        identifier = self._trace.next_id()
        if line.kick is None:
            line.kick = identifier
            self.tell("kick", id=identifier, queue=index)
        line.taken[chain] = (identifier, time.monotonic())
        self.tell(
            "chain",
            id=identifier,
            queue=index,
            kick=line.kick,
            readable=chain.readable,
            writable=chain.writable,
            descriptors=chain.descriptors,
        )

    def on_used(self, index: int, chain: Chain, written: int) -> None:
        """The device handed `chain` back with `written` bytes in it."""
        line = self._lines[index]
        identifier, since = line.taken.pop(chain, (None, 0.0))
        if identifier is None:
            return
        line.used.append(identifier)
        seconds = time.monotonic() - since
        self.tell("used", id=identifier, queue=index, written=written, seconds=seconds)

    def on_shown(self, index: int, *, interrupt: bool) -> None:
        """The driver sees what was handed back, and does or does not want an interrupt for it."""
        if not interrupt:
            self._lines[index].used.clear()

    def on_interrupt(self, index: int) -> None:
        """An interrupt for queue `index` left."""
        ids = list(self._lines[index].used)
        self._lines[index].used.clear()
        if ids:
            self.tell("interrupt", id=ids[0], queue=index, ids=ids)
        else:
            self.tell("interrupt", queue=index, ids=ids)

    def on_closed(self, index: int) -> None:
        """Queue `index` is gone, with all that was in it."""
        self._lines[index] = _Line()


class TappedQueue(PassingQueue):
    """A VirtQueue that tells `tap` of what passes through it to `real`."""

    def __init__(self, real: VirtQueue, tap: Tap) -> None:
        super().__init__(real)
        self._tap = tap

    def pop(self) -> Chain | None:
        """The next available chain, or None."""
        chain = self.real.pop()
        if chain is not None:
            self._tap.on_taken(self.index, chain)
        return chain

    def chains(self) -> Iterator[Chain]:
        """Available chains, one by one."""
        for chain in self.real.chains():
            self._tap.on_taken(self.index, chain)
            yield chain

    def complete(self, chain: Chain, written: int = 0) -> None:
        """Hand `chain` back."""
        self.real.complete(chain, written)
        self._tap.on_used(self.index, chain, written)

    def publish(self) -> bool:
        """Make completed chains visible; True if the driver wants an interrupt for them."""
        wanted = self.real.publish()
        self._tap.on_shown(self.index, interrupt=wanted)
        return wanted

    def close(self) -> None:
        """The transport calls it at reset."""
        super().close()
        self._tap.on_closed(self.index)


class TappedNotifier:
    """A Notifier that tells `tap` of what it passes on to `real`."""

    def __init__(self, real: Notifier, tap: Tap) -> None:
        self.real = real
        self._tap = tap

    def notify_queue(self, index: int) -> None:
        """Used buffers of queue `index` want attention."""
        self.real.notify_queue(index)
        self._tap.on_interrupt(index)

    def notify_config(self) -> None:
        """Configuration space or status changed."""
        self.real.notify_config()
        self._tap.tell("config")

    def on_device_reset(self) -> None:
        """Forget interrupt mappings and everything that has not been delivered."""
        self.real.on_device_reset()

    def on_queue_reset(self, index: int) -> None:
        """The same for queue `index` alone."""
        self.real.on_queue_reset(index)

    @property
    def bus_master(self) -> bool:
        """May the device touch guest memory?"""
        return self.real.bus_master


def tapped(queue: VirtQueue | None, tap: Tap | None) -> VirtQueue | None:
    """`queue`, live or not, as it is to be used with `tap`, or without one."""
    real = queue.real if isinstance(queue, TappedQueue) else queue
    return real if real is None or tap is None else TappedQueue(real, tap)


def ring_of(queue: VirtQueue | None) -> RingState | None:
    """How far a queue got, tapped or not, if it lives."""
    real = tapped(queue, None)
    return real.state() if isinstance(real, RingQueue) else None
