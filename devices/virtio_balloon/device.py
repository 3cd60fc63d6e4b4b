"""The memory balloon: the guest's free pages become the host's, on request (virtio-spec 5.5).

    host sets num_pages -> config interrupt -> guest inflates or deflates -> guest writes actual

Beside that the guest may tell statistics, and which pages are free (free page reporting). What is
given back to the host is decided in pages.py, plugged memory of virtio-mem devices included; it is
RAM like any other. Unplugged memory is refused.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import Any

from minivmm.devices.virtio_balloon.pages import PAGE, Pages
from minivmm.devices.virtio_balloon.spec import VirtioBalloonSpec
from minivmm.devices.virtio_balloon.statistics import Statistics
from minivmm.errors import BadState
from minivmm.memory.guest import GuestMemory
from minivmm.saved import Form, build, parse, require
from minivmm.spec.virtio_balloon import DEVICE_ID, BalloonConfig, Feature, Queue
from minivmm.units import MIB
from minivmm.virtio.device import DeviceTraits, Signals, VirtioDevice
from minivmm.virtio.errands import Errands
from minivmm.virtio.queue.queue import Chain, VirtQueue

_FORM = Form("minivmm.devices.virtio_balloon.saved", "BALLOON")
_NO_ROLE = 0xFF
"""Saved in place of a Queue: the queue is for nothing."""

MOST_PAGES = 0xFFFF_FFFF
"""Largest num_pages."""

_AT_ONCE = 16 * MIB
"""Bytes given back before others get the lock: some milliseconds, page by page."""
_PAGES_AT_ONCE = _AT_ONCE // PAGE
_FEATURE_OF = {
    Queue.STATS: Feature.STATS_VQ,
    Queue.FREE_PAGE: Feature.FREE_PAGE_HINT,
    Queue.REPORTING: Feature.PAGE_REPORTING,
}


class VirtioBalloon(VirtioDevice):
    """A balloon for all of guest memory; sizes in its configuration are pages of 4 KiB."""

    traits = DeviceTraits(
        device_id=DEVICE_ID,
        name="virtio-balloon",
        queue_sizes=(128,) * len(Queue),
        config_size=BalloonConfig.SIZE,
        pci_class=0x00FF00,  # no class of PCI fits
        vectors=2,
    )

    def __init__(self, spec: VirtioBalloonSpec) -> None:
        super().__init__(spec.id, spec)
        self.spec = spec
        self.num_pages = 0
        """Pages that the host wants in the balloon."""
        self.actual = 0
        """Pages that the driver says are in it."""
        self.on_change: Callable[[], None] = lambda: None
        """Called whenever `actual` has changed."""
        self.statistics = Statistics(lambda: self._kick(Queue.STATS))
        self.statistics.interval = spec.guest_stats_polling_interval
        self._poison = 0
        self._roles: dict[int, Queue] = {}
        self._report: tuple[Chain, deque[tuple[int, int]]] | None = None
        """A report that is being worked on, and what is left of it."""
        self._had_buffer = False
        self._had_report: Any = None
        """What was saved of `_report`, until the chains are known as well."""

    @property
    def size(self) -> int:
        """Bytes that the driver says are in the balloon."""
        return self.actual * PAGE

    # -- host side -------------------------------------------------------------------------------

    def use(self, errands: Errands) -> None:
        """Have `errands` remind us of asking for statistics."""
        super().use(errands)
        self.statistics.later = errands.later

    def set_target(self, size: int) -> None:
        """Ask for `size` bytes in the balloon, in whole pages."""
        self.num_pages = min(size // PAGE, MOST_PAGES)
        self.signals.trace("target", pages=self.num_pages)
        self.signals.config()

    def sizes(self) -> dict[str, int]:
        """What the host wants in the balloon, and what the driver says is in it; bytes."""
        return {"requested-size": self.num_pages * PAGE, "balloon-size": self.size}

    def inspect(self) -> dict[str, object]:
        """Pages wanted and had, and what became of memory that came, in bytes."""
        return {
            **super().inspect(),
            "num-pages": self.num_pages,
            "actual": self.actual,
            "poison": self._poison,
            "memory": self.pages.inspect(),
            "stats": self.statistics.to_json(),
        }

    # -- transport side --------------------------------------------------------------------------

    def attach(self, memory: GuestMemory, signals: Signals) -> None:
        """All of `memory` can be ballooned."""
        super().attach(memory, signals)
        self.pages = Pages(memory, signals)

    def offered_features(self) -> int:
        """Statistics always; the rest as the user wants it.

        PAGE_POISON lets drivers that fill free pages take part in reporting. MUST_TELL_HOST is not
        needed: a page that is used without telling is populated again.
        """
        offered = int(Feature.STATS_VQ)
        if self.spec.deflate_on_oom:
            offered |= Feature.DEFLATE_ON_OOM
        if self.spec.free_page_reporting:
            offered |= Feature.PAGE_REPORTING | Feature.PAGE_POISON
        return offered

    def config_space(self) -> bytes:
        """struct virtio_balloon_config as of now."""
        return BalloonConfig(
            num_pages=self.num_pages, actual=self.actual, poison_val=self._poison
        ).build()

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver tells `actual`, and what it fills free pages with."""
        config = bytearray(self.config_space())
        config[offset : offset + len(data)] = data
        told = BalloonConfig.parse(bytes(config))
        if self.features & Feature.PAGE_POISON:
            self._poison = told.poison_val
        self._set_actual(told.actual)

    def start(self, queues: tuple[VirtQueue | None, ...]) -> None:
        """Find out which queue is which; begin to ask for statistics."""
        enabled = {index for index, queue in enumerate(queues) if queue is not None}
        self._roles = _roles(self.features, enabled)
        self.statistics.poll_every(self.statistics.interval)

    def handle_queue(self, index: int, queue: VirtQueue) -> None:
        """Pages, statistics or reports. Raises DeviceBroken for malformed rings."""
        match self._roles.get(index):
            case Queue.INFLATE:
                self._handle_pages(queue, self.pages.give_back_numbered)
            case Queue.DEFLATE:
                self._handle_pages(queue, lambda _numbers: None)
            case Queue.STATS:
                if self.statistics.handle(queue):
                    self.signals.queue(index)
            case Queue.REPORTING:
                self._handle_reports(queue)
            case _:
                self.signals.trace("ignored", queue=index)

    def forget_queue(self, index: int) -> None:
        """Its buffers belong to the driver again (GEN-D-7)."""
        if self._roles.get(index) is Queue.REPORTING:
            self._report = None
        elif self._roles.get(index) is Queue.STATS:
            self.statistics.forget_driver()
            self.statistics.poll_every(self.statistics.interval)

    def on_broken(self) -> None:
        """What was under way is nobody's any more."""
        self._report = None
        self.statistics.forget_driver()

    def reset(self) -> None:
        """The driver is gone, and with it what it called its balloon; the host's wish stays."""
        self._report = None
        self._poison = 0
        self.features = 0
        self._roles = {}
        self.statistics.forget_driver()
        self._set_actual(0)

    # -- saved state -----------------------------------------------------------------------------

    def save_state(self) -> bytes:
        """The host's wish, the driver's word, and what is under way."""
        return build(
            _FORM,
            features=self.features,
            num_pages=self.num_pages,
            actual=self.actual,
            poison=self._poison,
            roles=[self._roles.get(index, _NO_ROLE) for index in range(len(Queue))],
            **self.pages.inspect(),
            statistics=self.statistics.save(),
            report=self._report and [{"gpa": at, "length": size} for at, size in self._report[1]],
        )

    def load_state(self, data: bytes) -> None:
        """Take it over; what is under way is found again by `adopt`. Raises BadState."""
        saved = parse(self.identifier, _FORM, data)
        roles = {index: role for index, role in enumerate(saved.roles) if role != _NO_ROLE}
        known = set(roles.values()) <= set(Queue) and len(set(roles.values())) == len(roles)
        require(known, self.identifier, "queues", list(saved.roles), "each is for one purpose")
        self.features = saved.features
        self.num_pages, self.actual, self._poison = saved.num_pages, saved.actual, saved.poison
        self._roles = {index: Queue(role) for index, role in roles.items()}
        self.pages.load(saved)
        self.statistics.load(saved.statistics)
        self._report = None
        self._had_buffer, self._had_report = saved.statistics.has_buffer, saved.report

    def adopt(self, queues: tuple[VirtQueue | None, ...]) -> None:
        """The buffer for statistics, and the report that is not done. Raises BadState."""
        if self._had_buffer:
            self.statistics.adopt(self._chain_of(Queue.STATS, queues))
        if self._had_report is not None:
            parts = deque((part.gpa, part.length) for part in self._had_report)
            self._report = self._chain_of(Queue.REPORTING, queues), parts
        self._had_buffer, self._had_report = False, None

    def _chain_of(self, role: Queue, queues: tuple[VirtQueue | None, ...]) -> Chain:
        """The chain that is in flight in the queue for `role`. Raises BadState without one."""
        for index, played in self._roles.items():
            queue = queues[index]
            if played is role and queue is not None and queue.in_flight:
                return queue.in_flight[0]
        raise BadState(self.identifier, "buffer", role.name, "the queue has none in flight")

    # -- inside ----------------------------------------------------------------------------------

    def _set_actual(self, count: int) -> None:
        if count != self.actual:
            self.actual = count
            self.on_change()

    def _kick(self, role: Queue) -> None:
        """Have the queue handled that plays `role`."""
        for index, played in self._roles.items():
            if played is role:
                self.signals.kick(index)

    def _handle_pages(self, queue: VirtQueue, act: Callable[[tuple[int, ...]], None]) -> None:
        """Chains of page numbers, to each of which `act` is done before it is acknowledged.

        Of a chain only as many are looked at as are dealt with at once: sixteen times what Linux
        puts into one. The others stay where they are, which ballooning allows.
        """
        count = 0
        for chain in queue.chains():
            data = chain.read(4 * _PAGES_AT_ONCE)
            numbers = struct.unpack(f"<{len(data) // 4}I", data[: len(data) & ~3])
            act(numbers)
            queue.complete(chain)
            count += len(numbers)
            if count >= _PAGES_AT_ONCE:
                self.signals.kick(queue.index)
                break
        if queue.publish():
            self.signals.queue(queue.index)

    def _handle_reports(self, queue: VirtQueue) -> None:
        """Chains whose writable buffers are the free pages themselves (5.5.6.7).

        What is left of one when its turn is over comes first in the next turn.
        """
        left = self._continue_report(queue, _AT_ONCE)
        for chain in queue.chains() if left > 0 else ():
            self._report = chain, deque(chain.writable_parts)
            left = self._continue_report(queue, left)
            if left <= 0:
                break
        if left <= 0:
            self.signals.kick(queue.index)
        if queue.publish():
            self.signals.queue(queue.index)

    def _continue_report(self, queue: VirtQueue, left: int) -> int:
        """Work on the report at hand, if there is one, for `left` bytes; what is left of those."""
        if self._report is None:
            return left
        chain, parts = self._report
        while parts and left > 0:
            left -= self._work_on(parts, left)
        if not parts:
            queue.complete(chain)
            self._report = None
        return left

    def _work_on(self, parts: deque[tuple[int, int]], most: int) -> int:
        """Give back at most `most` bytes of the first of `parts`; what that cost, in bytes.

        Pages that the driver filled with something else than zeroes must keep it (5.5.6.7.2).
        """
        gpa, length = parts.popleft()
        if length > most:
            parts.appendleft((gpa + most, length - most))
        if not self._poison:
            self.pages.give_back(gpa, min(length, most))
        return max(PAGE, min(length, most))


def _roles(features: int, enabled: set[int]) -> dict[int, Queue]:
    """Index of a queue -> what it is for.

    The specification gives every queue a fixed index. Linux, as QEMU has it, counts only those that
    were negotiated, which shows in the indices that it enables.
    """
    wanted = [queue for queue in Queue if queue not in _FEATURE_OF or features & _FEATURE_OF[queue]]
    if enabled == set(range(len(wanted))):
        return dict(enumerate(wanted))
    return {int(queue): queue for queue in wanted}
