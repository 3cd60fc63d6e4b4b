"""A 1 GiB virtio-mem device of 2 MiB blocks at 4 GiB, target 64 MiB, attached to guest memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.memory.guest import GuestMemory
from minivmm.memory.layout import Window
from minivmm.memory.region import Region
from minivmm.testing.fake_queue import FakeSignals
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
        values = {"size": GIB, "requested_size": 64 * MIB} | fields
        spec = VirtioMemSpec(**values)  # type: ignore[arg-type]
        device = VirtioMem(spec, Window(4 * GIB, spec.size), Region(spec.size, spec.host_memory))
        device.attach(memory, signals)
        return device

    return make


@pytest.fixture
def device(make: Make) -> VirtioMem:
    return make()


@pytest.fixture
def driver(device: VirtioMem) -> MemDriver:
    return MemDriver(device)
