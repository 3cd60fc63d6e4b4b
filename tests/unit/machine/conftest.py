"""A machine on a fake KVM, with a real event loop in a thread of its own and a tiny kernel."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

import pytest

from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.guest_image import GuestImage
from minivmm.loop import EventLoop
from minivmm.machine import Machine, Outcome
from minivmm.machine_spec import MachineSpec
from minivmm.testing.fake_kvm import FakeSystem, FakeVcpu, FakeVm
from minivmm.units import GIB, MIB

T = TypeVar("T")

KERNEL_START = 16 * MIB
"""pref_address of the kernel below."""
KERNEL_CODE = b"\xf4" * 4096
PANIC = b"Kernel panic - not syncing: no init\r\n"


def tiny_kernel() -> bytes:
    """A bzImage by Linux Documentation/arch/x86/boot.rst: one setup sector, a page of code."""
    data = bytearray(1024)
    for offset, form, value in (
        (0x1F1, "<B", 1),  # setup_sects
        (0x1F4, "<I", len(KERNEL_CODE) // 16),  # syssize
        (0x1FE, "<H", 0xAA55),
        (0x200, "<H", 0x6AEB),  # jump, which tells how long the header is
        (0x202, "<I", 0x53726448),
        (0x206, "<H", 0x020F),  # version
        (0x211, "<B", 1),  # loadflags: LOADED_HIGH
        (0x22C, "<I", 0x7FFF_FFFF),  # initrd_addr_max
        (0x230, "<I", 2 * MIB),  # kernel_alignment
        (0x234, "<B", 1),  # relocatable_kernel
        (0x236, "<H", 3),  # xloadflags: 64-bit entry
        (0x238, "<I", 2047),  # cmdline_size
        (0x258, "<Q", KERNEL_START),
        (0x260, "<I", 8 * MIB),  # init_size
    ):
        struct.pack_into(form, data, offset, value)
    return bytes(data) + KERNEL_CODE


IMAGE = GuestImage(tiny_kernel(), "tiny", "quiet", None)


class LoopThread:
    """An EventLoop that runs; `errors` are exceptions that callbacks let out."""

    def __init__(self) -> None:
        self.loop = EventLoop()
        self.errors: list[object] = []
        self.loop.asyncio.set_exception_handler(lambda _, context: self.errors.append(context))
        self.thread = threading.Thread(target=self.loop.asyncio.run_forever, name="loop")
        self.thread.start()

    def run(self, fn: Callable[[], T]) -> T:
        """Result of `fn`, run in the loop's thread without the lock."""
        done: Future[T] = Future()

        def call() -> None:
            try:
                done.set_result(fn())
            except BaseException as error:
                done.set_exception(error)

        self.loop.asyncio.call_soon_threadsafe(call)
        return done.result(10)

    def settle(self) -> None:
        """Return when the loop has done all that it had to do, and what came of that."""
        for _ in range(4):
            self.run(lambda: None)

    def close(self) -> None:
        self.loop.asyncio.call_soon_threadsafe(self.loop.asyncio.stop)
        self.thread.join(10)
        self.loop.asyncio.close()


class Rig:
    """A machine and everything that it tells."""

    def __init__(
        self,
        thread: LoopThread,
        system: FakeSystem | None = None,
        image: GuestImage = IMAGE,
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
            lambda: Machine(self.spec, image, self.system, self.loop, console=self._print)
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
    thread = LoopThread()
    yield thread
    thread.settle()
    thread.close()
    assert thread.errors == []


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


@pytest.fixture
def tiny_image() -> GuestImage:
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
