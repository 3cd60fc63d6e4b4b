"""Machines on fake KVMs, with one loop in a thread of its own, that move from one to another."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import pytest

from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.errors import MinivmmError
from minivmm.loop import EventLoop
from minivmm.machine import Machine
from minivmm.machine_spec import MachineSpec
from minivmm.migration.migration import Migration
from minivmm.snapshot import ram
from minivmm.testing.fake_kvm import FakeSystem, FakeVcpu
from minivmm.testing.mem_driver import MemDriver
from minivmm.testing.tiny_kernel import tiny_image
from minivmm.units import GIB, MIB
from minivmm.virtio.errands import Inline

T = TypeVar("T")

PLUGGED = ((3, 20), (40, 1))
"""Blocks that a new source has plugged: first, count."""


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.001)


class Party:
    """A machine that moves, or is to become another one, and what it tells."""

    def __init__(self, world: World, *, empty: bool, **options: Any) -> None:
        devices = (VirtioMemSpec(size=GIB, requested_size=256 * MIB),)
        chosen: dict[str, Any] = {"memory": 64 * MIB, "devices": devices} | options
        self.world = world
        self.system = FakeSystem()
        self.events: list[tuple[str, dict[str, object]]] = []
        self.kicks: list[str] = []
        self.ends: list[MinivmmError | None] = []
        """What expect() reported."""
        self.machine = world.call(
            lambda: Machine(
                MachineSpec(**chosen),
                tiny_image(),
                self.system,
                world.loop,
                console=lambda _: None,
                empty=empty,
            )
        )
        self.machine.on_event.append(lambda name, data: self.events.append((name, data)))
        self.migration = Migration(self.machine)
        for device in self.machine.memory_devices.values():
            self._watch(device)

    def _watch(self, device: VirtioMem) -> None:
        device.service.errands = Inline()  # a test that wants work aside has its own
        kick = device.kick

        def watched() -> None:
            self.kicks.append(self.machine.state)
            kick()

        device.kick = watched  # type: ignore[method-assign]

    @property
    def device(self) -> VirtioMem:
        return self.machine.memory_devices["vmem0"]

    @property
    def vcpu(self) -> FakeVcpu:
        return self.system.vms[0].vcpus[0]

    def driver(self) -> MemDriver:
        return MemDriver(self.device)

    def start(self) -> Party:
        """Running, with PLUGGED plugged, and something in memory everywhere."""

        def begin() -> None:
            self.machine.start()
            for number, (first, count) in enumerate(PLUGGED):
                assert self.driver().plug(first, count) == 0
                at = self.device.window.base + first * self.device.block_size
                self.machine.board.memory.write(at + 4096, b"plugged %d" % number * 1000)

        self.world.call(begin)
        return self

    def expect(self, uri: str) -> str:
        return self.world.call(lambda: self.migration.expect(uri, self.ends.append))

    def go(self, uri: str) -> None:
        self.world.call(lambda: self.migration.start(uri))

    def write(self, gpa: int, value: int) -> None:
        """The guest writes 8 bytes."""
        self.vcpu.script_mmio_write(gpa, 8, value)
        assert self.vcpu.wait_idle()

    def names(self) -> list[str]:
        return [name for name, _ in self.events]

    def statuses(self) -> list[object]:
        return [data["status"] for name, data in self.events if name == "MIGRATION"]

    def memory(self) -> list[tuple[int, bytes]]:
        """All that is memory of the guest, by address."""
        memory = self.machine.board.memory
        return [
            (piece.gpa, bytes(memory.peek(piece.gpa, piece.size))) for piece in ram.plugged(memory)
        ]

    def runs(self) -> bool:
        """Does its guest run? It is asked to do something."""
        before = self.machine.state == "running"
        if before:
            self.write(0x5000, 1)
        return before


class World:
    """The loop, and whoever lives on it."""

    def __init__(self) -> None:
        self.loop = EventLoop()
        self.errors: list[object] = []
        self.loop.asyncio.set_exception_handler(lambda _, context: self.errors.append(context))
        self.parties: list[Party] = []
        self._thread = threading.Thread(target=self.loop.asyncio.run_forever, name="loop")
        self._thread.start()

    def call(self, fn: Callable[[], T]) -> T:
        """Result of `fn`, run on the loop with the lock held."""
        done: Future[T] = Future()

        def call() -> None:
            try:
                with self.loop.lock:
                    result = fn()
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(result)

        self.loop.asyncio.call_soon_threadsafe(call)
        return done.result(10)

    def party(self, *, empty: bool = False, **options: Any) -> Party:
        self.parties.append(Party(self, empty=empty, **options))
        return self.parties[-1]

    def drop(self, party: Party) -> None:
        """Its process is gone."""
        self.parties.remove(party)
        party.migration.close()
        done = threading.Event()

        def shut() -> None:
            party.machine.close()
            done.set()

        self.loop.asyncio.call_soon_threadsafe(shut)
        assert done.wait(10)

    def close(self) -> None:
        for party in tuple(self.parties):
            self.drop(party)
        self.loop.asyncio.call_soon_threadsafe(self.loop.asyncio.stop)
        self._thread.join(10)
        self.loop.asyncio.close()
        assert self.errors == []


@pytest.fixture
def world() -> Iterator[World]:
    """Fails the test if anything raised on the loop, or a thread is left."""
    before = set(threading.enumerate())
    world = World()
    yield world
    world.close()
    wait_for(lambda: set(threading.enumerate()) <= before)


@pytest.fixture
def source(world: World) -> Party:
    """A running machine."""
    return world.party().start()


@pytest.fixture
def target(world: World) -> Party:
    """A machine like it, empty and not started."""
    return world.party(empty=True)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/m"


@pytest.fixture
def moved(source: Party, target: Party, uri: str) -> Callable[[], None]:
    """Call it to have the source moved to the target, whatever comes of it."""

    def move() -> None:
        source.go(target.expect(uri))
        wait_for(lambda: source.migration.progress.over and target.ends)

    return move


@pytest.fixture
def wait() -> Callable[..., None]:
    return wait_for
