"""One port of the console device: two byte streams between its owner on the host and the guest.

Knows queues and buffers; the control messages that open, close and name ports are device.py's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from minivmm.errors import DeviceBroken
from minivmm.spec.virtio_console import receive_queue, transmit_queue
from minivmm.virtio.queue.queue import Chain, VirtQueue

MOST_BYTES = 1 << 20
"""Bytes in one buffer of the guest; Linux sends at most 32 KiB (64 KiB by splice) in one."""


class Port:
    """A port as its owner on the host sees it. All methods run with the machine's lock held.

    The owner sets the callbacks. They may call the port's methods; they must not raise.

    on_data(data): the guest wrote `data`.
    on_guest_open(opened): a process of the guest opened or closed the port, or the driver vanished.
    on_open_change(opened): the same, for whoever only tells others of it.
    on_taken(count): `count` bytes given to `send` were copied into the guest's buffers.
    on_drained(): the guest's reader has consumed everything that was sent.
    """

    def __init__(
        self, identifier: int, name: str, kick: Callable[[int], None], announce: Callable[[], None]
    ) -> None:
        self.id = identifier
        self.name = name
        self.guest_open = False
        self.host_open = True
        self.throttled = False
        self.on_data: Callable[[bytes], None] = lambda data: None
        self.on_guest_open: Callable[[bool], None] = lambda opened: None
        self.on_open_change: Callable[[bool], None] = lambda opened: None
        self.on_taken: Callable[[int], None] = lambda count: None
        self.on_drained: Callable[[], None] = lambda: None
        self._kick = kick
        self._announce = announce
        self._backlog: deque[memoryview] = deque()
        self._buffers: deque[Chain] = deque()
        self._pool = 0
        self._drained = True

    # -- the host's side ---------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Queue `data` for the guest; it waits until a guest process has the port open."""
        if data:
            self._backlog.append(memoryview(data))
            self._drained = False
            self._kick(receive_queue(self.id))

    def discard(self) -> None:
        """Forget what was sent; what is in the guest's buffers already stays there."""
        self._backlog.clear()
        self._drained = True

    def set_host_open(self, opened: bool) -> None:
        """Open or close the host's side; guest readers see end of file while it is closed."""
        if opened != self.host_open:
            self.host_open = opened
            self._announce()

    def set_throttled(self, throttled: bool) -> None:
        """While throttled, the guest's data stays in its queue, and its writers block."""
        self.throttled = throttled
        if not throttled:
            self._kick(transmit_queue(self.id))

    @property
    def drained(self) -> bool:
        """True if nothing sent is left: neither here nor unread in the guest's driver."""
        return self._drained

    @property
    def pending(self) -> int:
        """Bytes given to `send` that are not yet in the guest's buffers."""
        return sum(map(len, self._backlog))

    # -- the device's side -------------------------------------------------------------------------

    def handle_receive(self, queue: VirtQueue) -> bool:
        """Collect empty buffers and fill them; True if the driver wants an interrupt.

        Buffers are held until there is data. Linux hands one back only when its reader has
        consumed all of it, so "all buffers are here again" means that nothing sent is unread.
        """
        for chain in queue.chains():
            self._buffers.append(chain)
        if len(self._buffers) > queue.size:
            raise DeviceBroken(f"port {self.id}: more buffers than the {queue.size} of its queue")
        self._pool = max(self._pool, len(self._buffers))
        held = len(self._buffers)
        taken = self._fill(queue) if self.guest_open else 0
        wanted = queue.publish() if len(self._buffers) < held else False
        if taken:
            self.on_taken(taken)
        if not self._drained and not self._backlog and len(self._buffers) == self._pool:
            self._drained = True
            self.on_drained()
        return wanted

    def handle_transmit(self, queue: VirtQueue) -> bool:
        """Take what the guest wrote, unless throttled; True if the driver wants an interrupt.

        Raises DeviceBroken for a buffer that is too large to be copied at once: nothing of what a
        guest wrote is dropped in silence.
        """
        took = False
        for chain in iter(()) if self.throttled else queue.chains():
            if chain.readable > MOST_BYTES:
                raise DeviceBroken(
                    f"port {self.id}: a buffer of {chain.readable} bytes, more than {MOST_BYTES}"
                )
            data = chain.read()
            queue.complete(chain)
            took = True
            self.on_data(data)
            if self.throttled:
                break
        return queue.publish() if took else False

    def set_guest_open(self, opened: bool) -> None:
        """The driver told that the port was opened or closed; a closed port takes no input."""
        if opened == self.guest_open:
            return
        if opened:
            self.guest_open = True
            self._tell_open(True)
            self._kick(receive_queue(self.id))
        else:
            # What was written before the close comes before it; what was sent has no reader now.
            self._kick(transmit_queue(self.id))
            self.guest_open = False
            self.discard()
            self._tell_open(False)

    def _tell_open(self, opened: bool) -> None:
        self.on_guest_open(opened)
        self.on_open_change(opened)

    def forget_buffers(self) -> None:
        """The receive queue was reset: the driver has its buffers back, used or not."""
        self._buffers.clear()
        self._pool = 0

    def forget_driver(self) -> None:
        """The device was reset: no buffers, nobody has the port open, its input has no reader."""
        self.forget_buffers()
        self.throttled = False
        if self.guest_open:
            self.guest_open = False
            self.discard()
            self._tell_open(False)

    def save(self) -> dict[str, object]:
        """Values of saved.PORT; the owner, and whether it throttles, stay with this process."""
        return {
            "guest_open": self.guest_open,
            "host_open": self.host_open,
            "drained": self._drained,
            "pool": self._pool,
            "backlog": b"".join(self._backlog),
        }

    def load(self, saved: Any) -> None:
        """Take them over; nobody is told, and buffers follow by `adopt`."""
        self.guest_open, self.host_open = saved.guest_open, saved.host_open
        self._drained, self._pool = saved.drained, saved.pool
        self._backlog = deque([memoryview(saved.backlog)] if saved.backlog else ())
        self._buffers.clear()

    def adopt(self, buffers: Iterable[Chain]) -> None:
        """Empty buffers that the driver supplied to another process."""
        self._buffers.extend(buffers)

    def inspect(self) -> dict[str, object]:
        """State for people; sizes in bytes, buffers counted."""
        return {
            "name": self.name,
            "host-open": self.host_open,
            "guest-open": self.guest_open,
            "throttled": self.throttled,
            "pending": self.pending,
            "buffers": len(self._buffers),
        }

    def _fill(self, queue: VirtQueue) -> int:
        """Copy backlog into held buffers; returns bytes copied."""
        taken = 0
        while self._backlog and self._buffers:
            chain = self._buffers.popleft()
            piece = self._take(chain.writable)
            chain.write(piece)
            queue.complete(chain, len(piece))
            taken += len(piece)
        return taken

    def _take(self, limit: int) -> bytes:
        """Up to `limit` bytes from the start of the backlog, joined."""
        pieces: list[memoryview] = []
        while self._backlog and limit:
            piece = self._backlog.popleft()
            if len(piece) > limit:
                self._backlog.appendleft(piece[limit:])
                piece = piece[:limit]
            pieces.append(piece)
            limit -= len(piece)
        return b"".join(pieces)
