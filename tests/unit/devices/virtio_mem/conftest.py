"""A 1 GiB virtio-mem device of 2 MiB blocks at 4 GiB, target 64 MiB, attached to guest memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.memory.guest import GuestMemory
from minivmm.testing.fake_queue import FakeSignals
from minivmm.testing.mem_bench import make_device
from minivmm.testing.mem_driver import MemDriver
from minivmm.units import GIB, MIB

Make = Callable[..., VirtioMem]


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory()
    yield memory
    memory.close()


@pytest.fixture
def signals() -> FakeSignals:
    return FakeSignals()


@pytest.fixture
def make(memory: GuestMemory, signals: FakeSignals) -> Make:
    """Make a device; keywords are fields of its spec."""

    def make(**fields: object) -> VirtioMem:
        device = make_device(**{"size": GIB, "requested_size": 64 * MIB} | fields)
        device.attach(memory, signals)
        return device

    return make


@pytest.fixture
def device(make: Make) -> VirtioMem:
    return make()


@pytest.fixture
def driver(device: VirtioMem) -> MemDriver:
    return MemDriver(device)
