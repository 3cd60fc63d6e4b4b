"""QueueService: the live queues of a device, and who may work on them when.

A queue is handled by one call at a time. A kick during that call comes after it, and so does the
rest of a queue with more work than a bound; both by way of the event loop.
"""

from __future__ import annotations

from collections.abc import Callable

from minivmm.virtio.queue.queue import VirtQueue

Defer = Callable[[Callable[[], None]], None]
"""defer(fn): call fn later, on the event loop, with the lock held."""


class QueueService:
    """`kick_later` is called for a queue with more to do, as the driver's kick would be."""

    def __init__(
        self,
        count: int,
        handle: Callable[[int, VirtQueue], None],
        kick_later: Callable[[int], None],
        defer: Defer,
    ) -> None:
        self.queues: list[VirtQueue | None] = [None] * count
        """By index; None for those that are not live."""
        self.handle = handle
        """Has the device work on a live queue."""
        self._kick_later = kick_later
        self._defer = defer
        self._busy: set[int] = set()
        self._kicked_again: set[int] = set()
        self._deferred: dict[int, VirtQueue] = {}

    def serve(self, index: int) -> None:
        """Have queue `index` handled, now or after what is being done with it. May not be live."""
        queue = self.queues[index]
        if queue is None:
            return
        if index in self._busy:
            self._kicked_again.add(index)
            return
        self._busy.add(index)
        self.handle(index, queue)
        self._busy.discard(index)
        if queue.interrupted or index in self._kicked_again:
            queue.interrupted = False
            self._kicked_again.discard(index)
            self._postpone(index, queue)

    def close(self, index: int) -> None:
        """From now on nothing of queue `index` touches guest memory."""
        queue, self.queues[index] = self.queues[index], None
        if queue is not None:
            queue.close()
        self._deferred.pop(index, None)
        self._kicked_again.discard(index)

    def close_all(self) -> None:
        """close() for all."""
        for index in range(len(self.queues)):
            self.close(index)

    def inspect(self) -> dict[int, object]:
        """Every live queue."""
        return {queue.index: queue.inspect() for queue in self.queues if queue is not None}

    def _postpone(self, index: int, queue: VirtQueue) -> None:
        """One deferred kick at a time, forgotten if the queue is gone by then."""
        if self._deferred.get(index) is queue:
            return
        self._deferred[index] = queue

        def again() -> None:
            if self._deferred.get(index) is queue:
                del self._deferred[index]
                self._kick_later(index)

        self._defer(again)
