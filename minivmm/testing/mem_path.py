"""The whole path of a request to virtio-mem without a guest: doorbell, ring, device, interrupt.

    with MemPath(GIB) as path:
        print(path.ask(RequestType.PLUG, 64, 64), "us")

The device is on a PCI bus, with its defaults and with memslots of a fake KVM; an in-process driver
asks as Linux does, memory is really given back to the host, an interrupt is a write to an eventfd.
"""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager, nullcontext

from minivmm.closing import Closing
from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.memory.layout import Window
from minivmm.memory.region import Region
from minivmm.memslots import Memslots
from minivmm.spec.virtio_mem import MemRequest, MemResponse, RequestType, ResponseType
from minivmm.testing.driver import DeviceBench
from minivmm.testing.fake_irq import FakeInterruptController, FakeMsiRoute
from minivmm.testing.fake_kvm import FakeVm
from minivmm.units import MIB, TIB

REGION = 32 * TIB
"""Guest physical address of the region, out of everybody's way."""
BLOCK = 2 * MIB
QUEUE_VECTOR = 1


class Message(FakeMsiRoute):
    """An interrupt that is a write to an eventfd, as with KVM."""

    def __init__(self, messages: list[tuple[int, int]], sent: dict[int, int]) -> None:
        super().__init__(messages)
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._sent = sent

    def signal(self) -> None:
        """irq.MsiRoute."""
        os.eventfd_write(self.fd, 1)
        self._sent[self.routes[-1][1]] = time.perf_counter_ns()


class Messages(FakeInterruptController):
    """Makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: dict[int, int] = {}
        """When the write of the latest of a vector was done, in nanoseconds of perf_counter."""

    def msi(self) -> Message:
        """irq.InterruptController."""
        message = Message(self.messages, self.sent)
        self.routes.append(message)
        return message

    def close(self) -> None:
        """Close the eventfds."""
        for route in self.routes:
            assert isinstance(route, Message)
            os.close(route.fd)


class MemPath(Closing):
    """A live device of `size` bytes and its driver; block 0 stays plugged."""

    def __init__(self, size: int, *, packed: bool = False) -> None:
        spec = VirtioMemSpec(size=size, requested_size=size, block_size=BLOCK, packed=packed)
        region = Region(spec.size, spec.host_memory)
        self.device = VirtioMem(spec, Window(REGION, size), region)
        self.messages = Messages()
        self.bench = DeviceBench(self.device, self.messages)
        self.bench.memory.subscribe(Memslots(FakeVm(), 32764, sparse=size, block=BLOCK))
        self.bench.driver.start()
        self._ring = self.bench.driver.queues[0]
        self.ask(RequestType.PLUG, 0, 1)

    def add(self, kind: RequestType, block: int, count: int) -> None:
        """Put a request into the ring."""
        addr = REGION + block * BLOCK
        request = MemRequest(type=kind, addr=addr, nb_blocks=count).build()
        self._ring.add([request], [MemResponse.SIZE], direct=0)

    def kick(self, within: AbstractContextManager[object] | None = None) -> float:
        """Microseconds from the doorbell to the last interrupt. All requests must be acknowledged.

        The device works inside of `within`, which does not count.
        """
        kick = self.bench.function.transport.kick
        with within or nullcontext():
            began = time.perf_counter_ns()
            kick(0)
        self.collect()
        sent = self.messages.sent[QUEUE_VECTOR]
        assert sent > began, "nothing was answered"
        return (sent - began) / 1000

    def collect(self) -> None:
        """Take the answers, which must be ACK."""
        for done in self._ring.collect():
            assert MemResponse.parse(done.data).type == ResponseType.ACK, "refused"

    def ask(
        self,
        kind: RequestType,
        block: int,
        count: int,
        within: AbstractContextManager[object] | None = None,
    ) -> float:
        """Microseconds that one request takes."""
        self.add(kind, block, count)
        return self.kick(within)

    def touch(self, block: int) -> None:
        """The guest writes to a plugged block."""
        self.device.region.view(block * BLOCK, 8)[:] = b"in use.."

    def resize(self, size: int) -> None:
        """The host asks for `size` bytes, and the driver does it by one request, as Linux can."""
        before = self.device.plugged_size
        self.device.set_requested_size(size)
        if size > before:
            self.ask(RequestType.PLUG, before // BLOCK, (size - before) // BLOCK)
        elif size < before:
            self.ask(RequestType.UNPLUG, size // BLOCK, (before - size) // BLOCK)

    def close(self) -> None:
        """Give everything back."""
        self.bench.close()
        self.messages.close()
