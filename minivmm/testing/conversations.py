"""Every device model with a short conversation that shows it to be in order, by a proper driver.

Raises AssertionError if it is not. Tests of what comes before or after (hostile drivers, resets)
need not know the devices then.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from minivmm.devices.virtio_balloon.device import VirtioBalloon
from minivmm.devices.virtio_balloon.spec import VirtioBalloonSpec
from minivmm.devices.virtio_blk.device import VirtioBlk
from minivmm.devices.virtio_blk.spec import VirtioBlkSpec
from minivmm.devices.virtio_console.device import VirtioConsole
from minivmm.devices.virtio_console.spec import VirtioConsoleSpec
from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.devices.virtio_rng.device import VirtioRng
from minivmm.devices.virtio_rng.spec import VirtioRngSpec
from minivmm.memory.guest import GuestMemory
from minivmm.spec.virtio_balloon import Queue
from minivmm.spec.virtio_blk import SECTOR, RequestHeader, RequestType
from minivmm.spec.virtio_console import (
    CONTROL_RECEIVE_QUEUE,
    CONTROL_TRANSMIT_QUEUE,
    NO_PORT,
    ControlMessage,
    Event,
    receive_queue,
)
from minivmm.spec.virtio_mem import BlockState, ResponseType
from minivmm.testing.buffers import GuestAllocator
from minivmm.testing.driver import VirtioPciDriver
from minivmm.testing.mem_bench import make_device
from minivmm.testing.mem_driver import MemDriver, by_queue
from minivmm.units import GIB, MIB
from minivmm.virtio.device import VirtioDevice


class Bench(Protocol):
    """A device, its driver, and the memory that the driver has: a DeviceBench, or the like."""

    @property
    def driver(self) -> VirtioPciDriver:
        """Started, with all queues."""

    @property
    def device(self) -> VirtioDevice:
        """What is talked to."""

    @property
    def memory(self) -> GuestMemory:
        """All of it."""

    @property
    def allocator(self) -> GuestAllocator:
        """Hands out of it."""


@dataclass(frozen=True)
class Kind:
    """A device model: how to make one with VirtioOptions, and how to talk to it once started."""

    make: Callable[..., VirtioDevice]
    converse: Callable[[Bench], None]
    queue: int = 0
    """The queue that a driver sends its requests to."""


def kinds(folder: Path) -> dict[str, Kind]:
    """All device models, by name, one with two of its queues; a disk gets its file in `folder`."""

    def make_disk(**options: object) -> VirtioDevice:
        file = folder / "disk.img"
        file.write_bytes(b"disk" * (MIB // 4))
        return VirtioBlk(VirtioBlkSpec(file=str(file), **options))  # type: ignore[arg-type]

    console = Kind(
        lambda **options: VirtioConsole(VirtioConsoleSpec(**options)),
        talk_to_console,
        CONTROL_TRANSMIT_QUEUE,
    )
    return {
        "mem": Kind(make_memory, talk_to_memory),
        "blk": Kind(make_disk, talk_to_disk),
        "rng": Kind(lambda **options: VirtioRng(VirtioRngSpec(**options)), talk_to_rng),
        "balloon": Kind(
            lambda **options: VirtioBalloon(VirtioBalloonSpec(free_page_reporting=True, **options)),
            talk_to_balloon,
        ),
        "console": console,
        "console-input": replace(console, queue=receive_queue(0)),
    }


def make_memory(**options: object) -> VirtioMem:
    """1 GiB at 4 GiB in blocks of 2 MiB, of which 64 MiB are wanted."""
    return make_device(size=GIB, requested_size=64 * MIB, **options)  # type: ignore[arg-type]


def talk_to_memory(bench: Bench) -> None:
    """Blocks are unplugged and plugged; what is written there is there."""
    device = bench.device
    assert isinstance(device, VirtioMem)
    driver = MemDriver(device, by_queue(bench.driver))
    assert driver.unplug_all() is ResponseType.ACK
    assert driver.plug(0, 8) is ResponseType.ACK
    assert driver.unplug(5, 3) is ResponseType.ACK
    assert driver.state(0, 5) is BlockState.PLUGGED
    assert driver.state(5, 8) is BlockState.UNPLUGGED
    assert driver.config().plugged_size == 5 * device.block_size
    bench.memory.write(driver.address(4), b"memory")
    assert bench.memory.read(driver.address(4), 6) == b"memory"


def talk_to_disk(bench: Bench) -> None:
    """A sector is written and read."""
    out = RequestHeader(type=RequestType.OUT, sector=7).build()
    back = RequestHeader(type=RequestType.IN, sector=7).build()
    (used,) = bench.driver.submit(0, out, b"x" * SECTOR, writable=(1,))
    assert used.data == b"\0"
    (used,) = bench.driver.submit(0, back, writable=(SECTOR, 1))
    assert used.data == b"x" * SECTOR + b"\0"


def talk_to_rng(bench: Bench) -> None:
    """A buffer is filled."""
    (used,) = bench.driver.submit(0, writable=(64,))
    assert used.written == 64
    assert any(used.data)


def talk_to_balloon(bench: Bench) -> None:
    """A page is put into the balloon, and is empty then."""
    page = bench.allocator.take(4096, 4096)
    bench.memory.write(page, b"air")
    (used,) = bench.driver.submit(Queue.INFLATE, struct.pack("<I", page >> 12))
    assert used.written == 0
    assert bench.memory.read(page, 3) == bytes(3)


def talk_to_console(bench: Bench) -> None:
    """A driver that is ready is told of the ports."""
    ready = ControlMessage(NO_PORT, Event.DEVICE_READY, 1).build()
    bench.driver.submit(CONTROL_RECEIVE_QUEUE, writable=(64,))
    bench.driver.submit(CONTROL_TRANSMIT_QUEUE, ready)
    (used,) = bench.driver.queues[CONTROL_RECEIVE_QUEUE].collect()
    assert ControlMessage.parse(used.data) == ControlMessage(0, Event.PORT_ADD, 1)
