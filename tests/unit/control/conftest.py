"""A machine with devices on a real board, and drivers for them: what QEMU was recorded with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from minivmm.board import Board, plan_board
from minivmm.boot.numa import parse_numa
from minivmm.devices.virtio_balloon.spec import VirtioBalloonSpec
from minivmm.devices.virtio_blk.spec import VirtioBlkSpec
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.devices.virtio_rng.spec import VirtioRngSpec
from minivmm.machine_spec import MachineSpec
from minivmm.testing.buffers import GuestAllocator
from minivmm.testing.driver import VirtioPciDriver
from minivmm.testing.fake_irq import FakeDefer, FakeDoorbells, FakeInterruptController
from minivmm.testing.fake_machine import FakeMachine
from minivmm.trace import Trace
from minivmm.units import GIB, MIB

NODES = ("node,nodeid=0,cpus=0,mem=256M", "node,nodeid=1,cpus=1,mem=256M")


class Wired:
    """A board, its drivers by device id, and a machine that shows them."""

    def __init__(self, disk: Path) -> None:
        spec = MachineSpec(
            name="vm1",
            cpus=2,
            devices=(
                VirtioMemSpec(
                    id="vmem0", size=GIB, requested_size=64 * MIB, block_size=2 * MIB, node=1
                ),
                VirtioBalloonSpec(id="balloon0"),
                VirtioRngSpec(id="rng0", packed=True),
                VirtioBlkSpec(id="disk0", file=str(disk)),
            ),
            numa=tuple(parse_numa(text) for text in NODES),
        )
        doorbells, defer = FakeDoorbells(), FakeDefer()
        self.board = Board(
            spec,
            plan_board(spec, 40),
            interrupts=FakeInterruptController(),
            doorbells=doorbells,
            defer=defer,
            trace=Trace(),
            console=lambda data: None,
        )
        memory = self.board.memory
        allocator = GuestAllocator(memory, 16 * MIB, 64 * MIB)
        self.drivers = {
            function.device.identifier: VirtioPciDriver(
                self.board.mmio, memory, allocator, function.slot, doorbells=doorbells, defer=defer
            )
            for function in self.board.functions
        }
        self.machine = FakeMachine("vm1")
        self.machine.memory_devices = self.board.memory_devices
        self.machine.balloon = self.board.balloon
        self.machine.functions = self.board.pci.functions
        self.machine.thread_ids = (4711, 4712)
        self.machine.numa = spec.topology()

    def start_drivers(self) -> None:
        for driver in self.drivers.values():
            driver.start()


@pytest.fixture
def wired(tmp_path: Path) -> Iterator[Wired]:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(16 * MIB))
    wired = Wired(disk)
    yield wired
    wired.board.close()
