"""Ordeals of every device model, in both ring formats; a running memory device with its driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.testing.conversations import Kind, kinds
from minivmm.testing.driver import DeviceBench
from minivmm.testing.mem_driver import MemDriver, by_queue
from minivmm.testing.mem_ordeal import MemOrdeal
from minivmm.testing.ordeal import Ordeal

MakeOrdeal = Callable[..., Ordeal]


@pytest.fixture
def bench(device: VirtioMem) -> Iterator[DeviceBench]:
    """The test's own `device`, started."""
    with DeviceBench(device) as made:
        made.driver.start()
        yield made


@pytest.fixture
def driver(bench: DeviceBench, device: VirtioMem) -> MemDriver:
    """Speaks to it through its queue."""
    return MemDriver(device, by_queue(bench.driver))


@pytest.fixture
def precious(bench: DeviceBench, device: VirtioMem) -> MemDriver:
    """The same, once block 7 is plugged and holds something."""
    made = MemDriver(device, by_queue(bench.driver))
    made.plug(7)
    bench.memory.write(made.address(7), b"precious")
    bench.irq.take()
    return made


@pytest.fixture
def device_kinds(tmp_path: Path) -> dict[str, Kind]:
    """All device models, by name."""
    return kinds(tmp_path)


@pytest.fixture
def make_any_ordeal(device_kinds: dict[str, Kind]) -> Iterator[MakeOrdeal]:
    """make_any_ordeal(kind="mem", *, packed, size=None, without=0)."""
    made: list[Ordeal] = []

    def make(kind: str = "mem", **fields: object) -> Ordeal:
        ordeal_type = MemOrdeal if kind == "mem" else Ordeal
        made.append(ordeal_type(device_kinds[kind], **fields))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for ordeal in made:
        ordeal.close()


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def packed(request: pytest.FixtureRequest) -> bool:
    """Each ring format in turn."""
    return bool(request.param)


@pytest.fixture
def make_ordeal(make_any_ordeal: MakeOrdeal, packed: bool) -> MakeOrdeal:
    """The same, in each ring format in turn."""
    return lambda kind="mem", **fields: make_any_ordeal(kind, packed=packed, **fields)


@pytest.fixture
def ordeal(make_ordeal: MakeOrdeal) -> MemOrdeal:
    """Of the memory device, in each ring format in turn."""
    made = make_ordeal()
    assert isinstance(made, MemOrdeal)
    return made


@pytest.fixture
def split(make_any_ordeal: MakeOrdeal) -> MemOrdeal:
    """Of the memory device, with a split ring."""
    made = make_any_ordeal(packed=False)
    assert isinstance(made, MemOrdeal)
    return made


@pytest.fixture
def packed_one(make_any_ordeal: MakeOrdeal) -> MemOrdeal:
    """Of the memory device, with a packed ring."""
    made = make_any_ordeal(packed=True)
    assert isinstance(made, MemOrdeal)
    return made
