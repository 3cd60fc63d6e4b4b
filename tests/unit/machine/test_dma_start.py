"""A machine with passed-on devices starts only where DMA can follow its memory, and with company
that leaves pinned pages alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from minivmm import dma_start
from minivmm.board import Board
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.dma_start import follow_memory
from minivmm.errors import HostError, UsageError
from minivmm.machine_spec import MachineSpec, parse_device
from minivmm.memory.layout import RegionRequest, plan
from minivmm.memory.region import Region
from minivmm.testing.dma_checks import check_mappings
from minivmm.testing.fake_container import FakeContainer
from minivmm.testing.mem_bench import MemBench
from minivmm.units import GIB, MIB

RAM = 64 * MIB
SIZE = GIB


class Start:
    """A board's memory, and what it takes to follow it."""

    def __init__(self, **fields: object) -> None:
        self.bench = MemBench(size=SIZE, block_size=2 * MIB, **fields)
        self.memory = self.bench.memory
        self.memory.add(0, Region(RAM), name="low RAM")
        self.container = FakeContainer()
        self.warnings: list[str] = []

    def follow(self) -> None:
        spec: VirtioMemSpec = self.bench.device.spec
        request = RegionRequest("vmem0", SIZE, spec.block_size, 4 * GIB)
        board = SimpleNamespace(
            memory=self.memory,
            address_map=plan(RAM, [request], 40),
            memory_devices={"vmem0": self.bench.device},
        )
        follow_memory(cast(Board, board), self.container, self.warnings.append)


@pytest.fixture(autouse=True)
def unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dma_start, "lockable", lambda: None)


@pytest.fixture
def start() -> Iterator[Start]:
    made = Start()
    yield made
    made.bench.close()


def test_memory_is_followed_from_the_start(start: Start) -> None:
    start.follow()
    start.bench.device.set_requested_size(SIZE)

    start.bench.driver.plug(7, 3)

    check_mappings(start.memory, start.container)
    assert len(start.container.mappings) == 1 + 3
    assert not start.warnings


def test_a_host_with_too_few_mappings_is_refused_with_nothing_mapped(start: Start) -> None:
    start.container.limit = 512

    with pytest.raises(HostError, match=r"may need 513 DMA mappings, .* use block-size=4M"):
        start.follow()

    assert not start.container.mappings and not start.memory.pinned


def test_too_little_lockable_memory_is_warned_of(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dma_start, "lockable", lambda: RAM)

    start.follow()

    (line,) = start.warnings
    assert "lock 64M only" in line


def test_what_is_requested_at_start_must_be_lockable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dma_start, "lockable", lambda: RAM)
    start = Start(requested_size=2 * MIB)

    with pytest.raises(HostError, match="pins guest memory, 66M of it at start"):
        start.follow()

    start.bench.close()


def test_a_file_that_cannot_be_pinned_is_refused(tmp_path: Path) -> None:
    start = Start(backing="file", path=str(tmp_path / "memory"))
    start.container.fails = "map"

    with pytest.raises(HostError, match=r"use a file in a tmpfs, or another backing="):
        start.follow()

    start.bench.close()


def test_a_file_that_can_be_pinned_is_left_empty(tmp_path: Path) -> None:
    start = Start(backing="file", path=str(tmp_path / "memory"))

    seen: list[int] = []
    real = start.bench.region.discard

    def discard(offset: int, length: int) -> None:
        seen.append(len(start.container.mappings))
        real(offset, length)

    start.bench.region.discard = discard  # type: ignore[method-assign]

    start.follow()

    assert seen == [0], "unmapped first"
    assert start.bench.region.usage().resident == 0
    check_mappings(start.memory, start.container)
    start.bench.close()


def machine(*devices: str) -> MachineSpec:
    return MachineSpec(devices=tuple(parse_device(text) for text in devices))


def test_a_balloon_and_passthrough_exclude_each_other() -> None:
    for balloon in ("virtio-balloon-pci", "virtio-balloon-pci,free-page-reporting=on"):
        with pytest.raises(UsageError, match=r"balloon0 gives pages back .* vfio0 .* leave out"):
            machine("vfio-pci,host=00:10.0", balloon)


def test_memory_that_is_populated_late_and_passthrough_exclude_each_other() -> None:
    passed_on, region = "vfio-pci,host=00:10.0", "virtio-mem-pci,size=1G"
    for fits in ("", ",prealloc=on", ",protect=kill", ",backing=memfd"):
        machine(passed_on, region + fits)

    with pytest.raises(UsageError, match="vmem0: prealloc=off cannot be kept with vfio0"):
        machine(passed_on, region + ",prealloc=off")
