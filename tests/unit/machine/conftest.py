"""A machine on a fake KVM, with a real event loop in a thread of its own and a tiny kernel."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.guest_image import GuestImage
from minivmm.machine import Machine, Outcome
from minivmm.machine_spec import MachineSpec
from minivmm.testing.buffers import GuestAllocator
from minivmm.testing.driver import VirtioPciDriver
from minivmm.testing.fake_irq import FakeDefer, FakeDoorbells
from minivmm.testing.fake_kvm import FakeSystem, FakeVcpu, FakeVm
from minivmm.testing.loop_thread import LoopThread
from minivmm.testing.tiny_kernel import tiny_image
from minivmm.units import GIB, MIB

T = TypeVar("T")

PANIC = b"Kernel panic - not syncing: no init\r\n"


IMAGE = tiny_image()


class Rig:
    """A machine and everything that it tells."""

    def __init__(
        self,
        thread: LoopThread,
        system: FakeSystem | None = None,
        image: GuestImage | Callable[[], GuestImage] = IMAGE,
        empty: bool = False,
        **options: Any,
    ) -> None:
        devices = (VirtioMemSpec(size=GIB, requested_size=256 * MIB),)
        chosen: dict[str, Any] = {"memory": 64 * MIB, "devices": devices} | options
        self.spec = MachineSpec(**chosen)
        self.thread = thread
        self.loop = thread.loop
        self.system = system or FakeSystem()
        self.output = bytearray()
        self.events: list[tuple[str, dict[str, object]]] = []
        self.outcomes: list[Outcome] = []
        self.inside: set[int] = set()
        """vCPUs that run guest code now."""
        self.machine = thread.run(
            lambda: Machine(
                self.spec, image, self.system, self.loop, console=self._print, empty=empty
            )
        )
        self.vm: FakeVm = self.system.vms[0]
        self.vcpus: list[FakeVcpu] = self.vm.vcpus
        self.machine.on_event.append(lambda name, data: self.events.append((name, data)))
        self.machine.on_end.append(self.outcomes.append)
        for vcpu in self.vcpus:
            self._observe(vcpu)

    def _print(self, data: bytes) -> None:
        self.output += data

    def _observe(self, vcpu: FakeVcpu) -> None:
        run = vcpu.run

        def observed() -> int:
            self.inside.add(vcpu.index)
            try:
                return run()
            finally:
                self.inside.discard(vcpu.index)

        vcpu.run = observed  # type: ignore[method-assign]

    @property
    def outcome(self) -> Outcome:
        """How the machine ended; waits for that."""
        wait_for(lambda: self.outcomes)
        return self.outcomes[0]

    def start(self) -> Rig:
        self.locked(self.machine.start)
        return self

    def start_driver(self) -> VirtioPciDriver:
        """The driver of vmem0 on the machine's own buses, up; it rings no doorbell by itself."""
        board = self.machine.board
        slot = next(f.slot for f in board.functions if f.device.identifier == "vmem0")
        allocator = GuestAllocator(board.memory, 40 * MIB, 44 * MIB)
        driver = VirtioPciDriver(
            board.mmio, board.memory, allocator, slot, doorbells=FakeDoorbells(), defer=FakeDefer()
        )
        self.locked(driver.start)
        return driver

    def locked(self, *calls: Callable[[], object]) -> None:
        """`calls` in a row, as one QMP session could make them."""

        def call_all() -> None:
            with self.loop.lock:
                for call in calls:
                    call()

        self.thread.run(call_all)

    def names(self) -> list[str]:
        """Names of all QMP events so far."""
        return [name for name, _ in self.events]

    def wait_for_event(self, name: str, count: int = 1) -> dict[str, object]:
        """Data of the last event `name`, once there were `count`."""
        wait_for(lambda: self.names().count(name) >= count)
        return next(data for event, data in reversed(self.events) if event == name)

    def close(self) -> None:
        self.thread.run(self.machine.close)


def wait_for(condition: Callable[[], object], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.001)


@pytest.fixture
def loop_thread() -> Iterator[LoopThread]:
    """Fails the test if anything raised on the loop."""
    with LoopThread() as thread:
        yield thread


MakeRig = Callable[..., Rig]


@pytest.fixture
def make_rig(loop_thread: LoopThread) -> Iterator[MakeRig]:
    """make_rig(**options of MachineSpec); closed, and looked at for leftovers, afterwards."""
    before = set(threading.enumerate())
    rigs: list[Rig] = []

    def make(**options: Any) -> Rig:
        rigs.append(Rig(loop_thread, **options))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()
        assert rig.vm.closed
    assert set(threading.enumerate()) == before


@pytest.fixture(name="tiny_image")
def the_image() -> GuestImage:
    return IMAGE


@pytest.fixture
def rig(make_rig: MakeRig) -> Rig:
    """One vCPU, 64 MiB, vmem0 with 256 MiB requested of 1 GiB; not started."""
    return make_rig()


@pytest.fixture
def rig4(make_rig: MakeRig) -> Rig:
    """The same with four vCPUs."""
    return make_rig(cpus=4)


@pytest.fixture
def wait() -> Callable[..., None]:
    return wait_for
