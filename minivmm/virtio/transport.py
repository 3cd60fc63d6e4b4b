"""What every virtio transport shares: status machine, features, queues' life, kicks, reset.

    0 --ACKNOWLEDGE, DRIVER--> features --FEATURES_OK--> queues --DRIVER_OK--> live
    live --violation or bug--> NEEDS_RESET        any --FAILED--> stopped        any --0--> 0

How registers are reached and how an interrupt leaves is the transport's own (pci.py): it calls the
methods here and is the Notifier. All methods run with the machine's lock held.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from minivmm.errors import DeviceBroken
from minivmm.memory.guest import GuestMemory
from minivmm.spec.virtio import DeviceStatus, Feature
from minivmm.trace import Detail, Trace
from minivmm.virtio.device import VirtioDevice
from minivmm.virtio.generation import Generation
from minivmm.virtio.notifier import Notifier
from minivmm.virtio.queue import open_queue
from minivmm.virtio.queue.queue import VirtQueue
from minivmm.virtio.queue.ring import RingState
from minivmm.virtio.queue_registers import QueueRegisters
from minivmm.virtio.service import Defer, QueueService
from minivmm.virtio.tap import Tap, TappedNotifier, ring_of, tapped

_DRIVER_BITS = (
    DeviceStatus.ACKNOWLEDGE
    | DeviceStatus.DRIVER
    | DeviceStatus.FEATURES_OK
    | DeviceStatus.DRIVER_OK
    | DeviceStatus.FAILED
)
_LIVE_MASK = int(DeviceStatus.DRIVER_OK | DeviceStatus.NEEDS_RESET | DeviceStatus.FAILED)
_LIVE = int(DeviceStatus.DRIVER_OK)


class Transport:
    """The half of a virtio device that no device model sees; it is also their Signals."""

    def __init__(
        self,
        device: VirtioDevice,
        notifier: Notifier,
        *,
        memory: GuestMemory,
        trace: Trace,
        defer: Defer,
    ) -> None:
        sizes = [device.options.queue_size or size for size in device.traits.queue_sizes]
        self.device = device
        self.status = DeviceStatus(0)
        # A plain integer: ~ of an IntFlag forgets bits above its own.
        self.device_features = device.options.ring_features | int(device.offered_features())
        self.driver_features = 0
        self.trouble = ""
        """Why NEEDS_RESET is set, in a line."""
        self.queue_registers = tuple(QueueRegisters(size) for size in sizes)
        self._bus = self._notifier = notifier
        self._memory = memory
        self._trace = trace
        self._service = QueueService(len(sizes), self._handle, self.kick, defer)
        self._held = self._restored = False
        self.generation = Generation()
        self._tap: Tap | None = None
        device.attach(memory, self)
        trace.on_detail(Detail.REQUESTS, self._follow_requests)

    @property
    def live(self) -> bool:
        """May the device use its queues and notify the driver? (GEN-D-1, GEN-D-2)"""
        return int(self.status) & _LIVE_MASK == _LIVE

    def inspect(self) -> dict[str, object]:
        """Status, features and live queues."""
        return {
            "status": self.status.name or "reset",
            "device-features": f"{self.device_features:#x}",
            "driver-features": f"{self.driver_features:#x}",
            "config-generation": self.generation.value,
            "queues": self._service.inspect(),
        }

    def live_queues(self) -> tuple[dict[str, object], ...]:
        """Format, indices and addresses of every live queue, in order of "index"."""
        return tuple({"index": q.index, **q.inspect()} for q in self._service.queues if q)

    # -- status and features: what the driver writes -----------------------------------------------

    def write_status(self, value: int) -> None:
        """device_status: 0 resets, other values can only add bits (reference B.7)."""
        if value == 0:
            self.reset()
            return
        added = DeviceStatus(value) & _DRIVER_BITS & ~self.status
        if DeviceStatus.FEATURES_OK in added and not self._settle_features():
            added &= ~DeviceStatus.FEATURES_OK
        if DeviceStatus.FEATURES_OK not in self.status | added:
            added &= ~DeviceStatus.DRIVER_OK
        if not added:
            return
        self.status |= added
        self.trace("status", status=self.status.name)
        if DeviceStatus.FAILED in added:
            self._service.close_all()
            with self._guarded("on_broken"):
                self.device.on_broken()
        elif DeviceStatus.DRIVER_OK in added:
            self._start()

    def device_feature_word(self, word: int) -> int:
        """Offered features, bits 32 * `word` and up; 0 where there are none (PCI-D-9)."""
        return self.device_features >> 32 * word & 0xFFFF_FFFF if word < 4 else 0

    def driver_feature_word(self, word: int) -> int:
        """What the driver wrote for that word (PCI-D-10)."""
        return self.driver_features >> 32 * word & 0xFFFF_FFFF if word < 4 else 0

    def write_driver_features(self, word: int, value: int) -> None:
        """Features that the driver wants; ignored after FEATURES_OK.

        Bits that were not offered are kept, so that FEATURES_OK can be refused because of them.
        """
        if DeviceStatus.FEATURES_OK in self.status or word >= 4:
            return
        others = self.driver_features & ~(0xFFFF_FFFF << 32 * word)
        self.driver_features = others | value << 32 * word

    def enable_queue(self, index: int, value: int) -> None:
        """queue_enable: 1 freezes the queue's registers; anything else is ignored (B.7).

        Possible between FEATURES_OK and DRIVER_OK; with RING_RESET also later, and then the queue
        lives at once (GEN-D-8). What is wrong with the registers shows as NEEDS_RESET, at DRIVER_OK
        at the earliest.
        """
        settled = self.status & (DeviceStatus.FEATURES_OK | DeviceStatus.DRIVER_OK)
        registers = self.queue_registers[index]
        if value != 1 or registers.enabled:
            return
        if settled == DeviceStatus.FEATURES_OK:
            registers.enabled = True
        elif self.live and self.negotiated(Feature.RING_RESET):
            registers.enabled = True
            with self._guarded("enable_queue"):
                self._open(index)
            self.kick(index)

    def reset_queue(self, index: int, value: int) -> None:
        """queue_reset: with RING_RESET, 1 makes the queue as it was before it was set up.

        It is done when this returns, so queue_reset never reads 1 (PCI-D-14, GEN-D-7).
        """
        if value != 1 or not self.negotiated(Feature.RING_RESET):
            return
        self.trace("queue-reset", queue=index)
        self._service.close(index)
        self.queue_registers[index].reset()
        self._notifier.on_queue_reset(index)
        if self.live:
            with self._guarded("forget_queue"):
                self.device.forget_queue(index)

    def negotiated(self, feature: Feature) -> bool:
        """Was `feature` settled with the driver, by FEATURES_OK?"""
        settled = DeviceStatus.FEATURES_OK in self.status
        return settled and bool(self.driver_features & feature.mask)

    def reset(self) -> None:
        """Device reset (GEN-D-5): afterwards nothing touches queues or notifies the driver."""
        if self.status:
            self.trace("reset")
        self.status = DeviceStatus(0)
        self.trouble = ""
        self._service.close_all()
        for registers in self.queue_registers:
            registers.reset()
            registers.packed = False
        self.driver_features = 0
        self._notifier.on_device_reset()
        with self._guarded("reset"):
            self.device.reset()
        self.status = DeviceStatus(0)  # even if the model failed: drivers poll for 0 (PCI-D-12)

    # -- configuration space -----------------------------------------------------------------------

    def read_config(self, offset: int, size: int) -> int:
        """`size` bytes at `offset` of the configuration space; zeroes behind its end."""
        data = b""
        with self._guarded("config_space"):
            data = self.device.read_config(offset, size)
        value = int.from_bytes(data, "little")
        if self._tap is not None:
            self._tap.tell("config-read", offset=offset, size=size, value=f"{value:#x}")
        return value

    def write_config(self, offset: int, size: int, value: int) -> None:
        """The driver's write, if it lies inside the configuration space."""
        if offset + size <= self.device.traits.config_size:
            with self._guarded("write_config"):
                self.device.write_config(offset, value.to_bytes(size, "little"))

    # -- Signals: what device models call ----------------------------------------------------------

    def config(self, *, notify: bool = True) -> None:
        """Configuration space changed.

        Before DRIVER_OK the generation moves as well (drivers read early, GEN-D-6), but neither ISR
        nor interrupt tell of it (reference E.4).
        """
        self.generation.change()
        if notify and self.live:
            self._notifier.notify_config()

    def queue(self, index: int) -> None:
        """Used buffers of queue `index` want attention."""
        if self.live:
            self._notifier.notify_queue(index)

    def kick(self, index: int) -> None:
        """Let the device handle queue `index`, if it is live; from the driver or from the device.

        Whatever goes wrong in there breaks the device and nothing else.
        """
        if self._held:
            with self._guarded("conclude"):
                self.device.conclude()
        elif self.live and self._notifier.bus_master:
            self._service.serve(index)

    def kick_all(self) -> None:
        """Look at every live queue: kicks were ignored until now."""
        for index in range(len(self.queue_registers)):
            self.kick(index)

    def hold(self, on: bool) -> None:
        """Touch no queue any more, but to answer what is at work aside of the lock; or go on.

        For when no vCPU runs; on as well once a state was loaded, until the guest is to go on.
        """
        self._held = on
        if self._restored and not on:
            self._restored = False
            with self._guarded("on_restored"):
                self.device.on_restored()
        self.kick_all()

    def rings(self) -> tuple[RingState | None, ...]:
        """How far every live queue got, by index."""
        return tuple(map(ring_of, self._service.queues))

    def load(self, saved: Any) -> None:
        """Take over what judge_transport let pass, and hold; the device model came before.

        Raises DeviceBroken for registers and rings that no driver can cause.
        """
        self._held = self._restored = True
        self._service.close_all()
        self.status = DeviceStatus(saved.status)
        self.driver_features = saved.driver_features
        self.trouble = saved.trouble
        self.generation.value, self.generation.seen = saved.generation, saved.generation_seen
        packed = self.negotiated(Feature.RING_PACKED)
        for index, queue in enumerate(saved.queues):
            self.queue_registers[index].load(queue, packed=packed)
            if queue.ring is not None:
                self._open(index, queue.ring)
        self.device.adopt(tuple(self._service.queues))

    def trace(self, name: str, **fields: object) -> None:
        """Emit a trace event with the device's identifier as its source."""
        self._trace.emit(self.device.identifier, name, **fields)

    # -- inside ------------------------------------------------------------------------------------

    def _settle_features(self) -> bool:
        """FEATURES_OK: are the driver's features a set that can be served? (GEN-D-3)"""
        chosen, refused = self.driver_features, ""
        if chosen & ~self.device_features:
            refused = f"{chosen & ~self.device_features:#x} was not offered"
        elif not chosen & Feature.VERSION_1.mask:
            refused = "VERSION_1 is missing"
        else:
            accepted = False
            with self._guarded("accept_features"):
                accepted = self.device.accept_features(chosen)
            refused = "" if accepted else "the device needs others"
        self.trace("features", chosen=f"{chosen:#x}", refused=refused)
        for registers in self.queue_registers:
            registers.packed = not refused and bool(chosen & Feature.RING_PACKED.mask)
        return not refused

    def _start(self) -> None:
        """DRIVER_OK: open the enabled queues, then look at rings that were filled early (B.7)."""
        if not self.live:
            return
        with self._guarded("start"):
            for index, registers in enumerate(self.queue_registers):
                if registers.enabled:
                    self._open(index)
            self.device.start(tuple(self._service.queues))
        self.kick_all()

    def _open(self, index: int, resumed: RingState | None = None) -> None:
        """Raises DeviceBroken for what is wrong with the registers of queue `index`."""
        layout = self.queue_registers[index].layout()
        queue = open_queue(index, self._memory, layout, self.driver_features, resumed)
        self._service.queues[index] = tapped(queue, self._tap)

    def _follow_requests(self, on: bool) -> None:
        """Somebody begins to follow requests, or nobody does any more."""
        tap = Tap(self.device.identifier, self._trace, len(self.queue_registers)) if on else None
        self._tap = tap
        self._notifier = TappedNotifier(self._bus, tap) if tap else self._bus
        self._service.handle = tap.handler(self._handle) if tap else self._handle
        self._service.queues[:] = [tapped(queue, tap) for queue in self._service.queues]
        self.device.follow(tap)

    def _handle(self, index: int, queue: VirtQueue) -> None:
        try:  # _guarded, without what a context costs
            self.device.handle_queue(index, queue)
        except Exception as error:
            self._break("handle_queue", error)

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """Run device code: the driver's violations and our own bugs both break only the device."""
        try:
            yield
        except Exception as error:
            self._break(what, error)

    def _break(self, what: str, error: Exception) -> None:
        """DEVICE_NEEDS_RESET: stop consuming, tell the driver; only a reset cures (GEN-D-2)."""
        if DeviceStatus.NEEDS_RESET in self.status:
            return
        was_live = self.live
        self.status |= DeviceStatus.NEEDS_RESET
        self._service.close_all()
        told = isinstance(error, DeviceBroken)
        self.trouble = str(error) if told else f"{what} failed"
        details = {} if told else {"traceback": "".join(traceback.format_exception(error))}
        self.trace("broken", why=self.trouble, **details)
        if was_live:
            self._notifier.notify_config()
        with self._guarded("on_broken"):
            self.device.on_broken()
