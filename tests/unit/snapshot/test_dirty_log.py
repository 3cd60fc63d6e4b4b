"""DirtyLog on a fake KVM: nothing that is written is lost, nothing unplugged is told."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise

import pytest

from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.errors import HostError, Refused
from minivmm.loop import EventLoop
from minivmm.machine import Machine
from minivmm.machine_spec import MachineSpec
from minivmm.snapshot.dirty import DirtyLog
from minivmm.testing.fake_kvm import FakeSystem, FakeVm
from minivmm.testing.tiny_kernel import tiny_image
from minivmm.units import GIB, MIB
from minivmm.write_log import runs

PAGE = 4096
BLOCK = 2 * MIB


class Rig:
    """A machine with 4 GiB in vmem0, not started, and a log that was begun."""

    def __init__(self) -> None:
        self.loop = EventLoop()
        system = FakeSystem()
        devices = (VirtioMemSpec(size=4 * GIB, requested_size=4 * GIB, protect="report"),)
        spec = MachineSpec(memory=64 * MIB, devices=devices)
        self.machine = Machine(spec, tiny_image(), system, self.loop, console=lambda _: None)
        self.vm: FakeVm = system.vms[0]
        self.memory = self.machine.board.memory
        self.device = self.machine.memory_devices["vmem0"]
        self.base = self.device.window.base
        self.log = DirtyLog()
        self.log.begin(self.machine)

    def plug(self, first: int, count: int) -> None:
        self.device.host_side.plug(first * BLOCK, count * BLOCK).prepare()
        self.memory.plug(self.device.slot, first * BLOCK, count * BLOCK)
        self.device.blocks.plug(first, count)

    def unplug(self, first: int, count: int) -> None:
        piece = (first * BLOCK, count * BLOCK)
        work = self.device.host_side.unplug([piece], piece)
        work.prepare()
        work.aside()
        self.device.blocks.unplug(first, count)

    def close(self) -> None:
        self.log.end()
        self.machine.close()
        self.loop.asyncio.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


def test_nothing_written_is_nothing_told(rig: Rig) -> None:
    assert rig.log.collect() == []


def test_pages_that_cpus_wrote_are_told_once(rig: Rig) -> None:
    rig.vm.wrote(MIB, 1)
    rig.vm.wrote(MIB + PAGE, 8)
    rig.vm.wrote(3 * MIB - 1, 2)
    assert rig.log.collect() == [(MIB, 2 * PAGE), (3 * MIB - PAGE, 2 * PAGE)]
    assert rig.log.collect() == []


def test_what_devices_write_is_told(rig: Rig) -> None:
    rig.memory.write(2 * MIB - 4, b"12345678")
    rig.memory.view(5 * MIB, 2)[:] = b"xy"
    rig.memory.discard(8 * MIB, MIB)
    assert rig.log.collect() == [
        (2 * MIB - PAGE, 2 * PAGE),
        (5 * MIB, PAGE),
        (8 * MIB, MIB),
    ]


def test_reading_is_not_writing(rig: Rig) -> None:
    rig.memory.read(MIB, 10)
    rig.memory.peek(MIB, 10)
    rig.memory.check(MIB, 10)
    assert rig.log.collect() == []


def test_a_block_that_was_plugged_is_told_whole(rig: Rig) -> None:
    rig.plug(3, 2)
    assert rig.log.collect() == [(rig.base + 3 * BLOCK, 2 * BLOCK)]


def test_what_is_unplugged_again_is_not_told(rig: Rig) -> None:
    rig.plug(0, 4)
    rig.log.collect()
    rig.vm.wrote(rig.base, 4 * BLOCK)
    rig.unplug(1, 2)
    assert rig.log.collect() == [(rig.base, BLOCK), (rig.base + 3 * BLOCK, BLOCK)]


def test_a_block_plugged_written_unplugged_and_plugged_again_is_told_whole(rig: Rig) -> None:
    rig.plug(7, 1)
    rig.log.collect()
    rig.vm.wrote(rig.base + 7 * BLOCK, 1)
    rig.unplug(7, 1)
    rig.plug(7, 1)
    assert rig.log.collect() == [(rig.base + 7 * BLOCK, BLOCK)]


def test_cutting_a_memslot_loses_nothing(rig: Rig) -> None:
    rig.plug(0, 1)
    rig.plug(2, 1)
    rig.log.collect()
    rig.vm.wrote(rig.base + PAGE, 1)
    assert rig.machine._memslots.narrow({"vmem0"})
    rig.vm.wrote(rig.base + 2 * BLOCK, 1)
    assert rig.log.collect() == [(rig.base + PAGE, PAGE), (rig.base + 2 * BLOCK, PAGE)]


def test_memslots_that_come_later_are_logged(rig: Rig) -> None:
    rig.plug(1024, 1)
    rig.log.collect()
    rig.vm.wrote(rig.base + 1024 * BLOCK, 1)
    assert rig.log.collect() == [(rig.base + 1024 * BLOCK, PAGE)]


def test_after_the_end_nothing_is_kept(rig: Rig) -> None:
    assert all(slot.logged for slot in rig.vm.slots.values())
    rig.log.end()
    rig.log.end()
    assert not any(slot.logged for slot in rig.vm.slots.values())
    assert all("view" not in vars(slot.region) for slot in rig.memory.slots)
    with pytest.raises(Refused, match="no log"):
        rig.log.collect()


def test_two_logs_each_learn_everything(rig: Rig) -> None:
    rig.vm.wrote(MIB, 1)
    other = DirtyLog()
    other.begin(rig.machine)
    rig.vm.wrote(2 * MIB, 1)
    assert other.collect() == [(2 * MIB, PAGE)]
    rig.memory.write(3 * MIB, b"x")
    assert rig.log.collect() == [(MIB, PAGE), (2 * MIB, PAGE), (3 * MIB, PAGE)]
    rig.log.end()
    assert other.collect() == [(3 * MIB, PAGE)]
    other.end()


def test_a_kvm_that_keeps_no_log_is_said_and_nothing_stays(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.log.end()
    refused = FakeVm.set_memory_region

    def refuse(vm: FakeVm, *args: int, logged: bool = False, **options: bool) -> None:
        if logged:
            raise HostError("cannot log")
        refused(vm, *args, **options)

    monkeypatch.setattr(FakeVm, "set_memory_region", refuse)
    with pytest.raises(HostError, match="cannot log"):
        rig.log.begin(rig.machine)
    assert not any(slot.logged for slot in rig.vm.slots.values())
    rig.plug(0, 1)


def test_memory_for_the_log_is_bounded(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minivmm.snapshot.dirty._ENOUGH", 4)
    for page in range(64):
        rig.log.wrote(page * PAGE, 1)
        assert len(rig.log._pages) <= 5
    assert rig.log.collect() == [(0, 64 * PAGE)]


def test_a_model_of_pages_agrees_over_a_random_life(rig: Rig) -> None:
    """The truth is a set of pages; blocks come and go, memslots are cut, logs are read."""
    dice = random.Random(7)
    plugged: set[int] = set()
    truth: set[int] = set()
    pages = BLOCK // PAGE
    for _ in range(600):
        block = dice.choice([0, 1, 2, 511, 512, 513, 1600])
        match dice.randrange(6):
            case 0 if block not in plugged:
                rig.plug(block, 1)
                plugged.add(block)
                truth |= set(range(block * pages, block * pages + pages))
            case 1 if block in plugged:
                rig.unplug(block, 1)
                plugged.discard(block)
                truth -= set(range(block * pages, block * pages + pages))
            case 2 | 3 if block in plugged:
                page = block * pages + dice.randrange(pages)
                rig.vm.wrote(rig.base + page * PAGE, 1)
                truth.add(page)
            case 4:
                rig.machine._memslots.narrow({"vmem0"})
            case 5 if not dice.randrange(4):
                told = {
                    (at - rig.base) // PAGE
                    for gpa, size in rig.log.collect()
                    for at in range(gpa, gpa + size, PAGE)
                }
                assert told == truth
                truth = set()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999, 1.0])
def test_runs_of_a_bitmap_are_those_of_its_bits(share: float) -> None:
    dice = random.Random(3)
    pages = [page for page in range(3 * 4096 * 8) if dice.random() < share]
    bitmap = bytearray(3 * 4096)
    for page in pages:
        bitmap[page // 8] |= 1 << page % 8
    found = list(runs(bitmap))
    assert [page for first, count in found for page in range(first, first + count)] == pages
    assert all(sum(one) < two[0] for one, two in pairwise(found))
