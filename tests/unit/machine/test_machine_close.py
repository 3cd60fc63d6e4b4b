"""Whatever happened before: after close(), or a failed construction, nothing is left."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minivmm import board
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.errors import HostError, ImageError, MinivmmError, UsageError
from minivmm.guest_image import GuestImage
from minivmm.kvm.abi import Cap
from minivmm.machine import Machine
from minivmm.machine_spec import MachineSpec
from minivmm.memory.region import Region
from minivmm.spec.platform import SERIAL_PORT, SLEEP_CONTROL_PORT
from minivmm.testing.fake_kvm import FakeSystem, FakeVcpu, FakeVm
from minivmm.units import GIB, MIB

SPEC = MachineSpec(
    memory=64 * MIB,
    cpus=2,
    devices=(VirtioMemSpec(id="a", size=GIB), VirtioMemSpec(id="b", size=2 * GIB)),
)


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@pytest.fixture
def regions(monkeypatch: pytest.MonkeyPatch) -> list[Region]:
    """Every region that a board maps."""
    made: list[Region] = []

    class Counted(Region):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(board, "Region", Counted)
    return made


@pytest.fixture(autouse=True)
def no_descriptor_leaks(loop_thread: Any) -> Iterator[None]:
    before = open_descriptors()
    yield
    loop_thread.settle()
    assert open_descriptors() == before


class FailingVm(FakeVm):
    """Refuses one kind of call."""

    fails = ""

    def create_vcpu(self, index: int) -> FakeVcpu:
        if index == 1 and self.fails == "vcpu":
            raise HostError("no more CPUs")
        return super().create_vcpu(index)

    def set_memory_region(self, *args: Any, **options: Any) -> None:
        if self.fails == "slot":
            raise HostError("no more slots")
        super().set_memory_region(*args, **options)


class FailingSystem(FakeSystem):
    def __init__(self, fails: str) -> None:
        super().__init__()
        self.fails = fails

    def create_vm(self) -> FakeVm:
        vm = FailingVm()
        vm.fails = self.fails
        self.vms.append(vm)
        return vm

    def check(self, capability: int) -> int:
        if self.fails == "check" and capability == Cap.TSC_DEADLINE_TIMER:
            raise HostError("no answer")
        return super().check(capability)


def construct(
    loop_thread: Any, system: FakeSystem, kernel: bytes, spec: MachineSpec = SPEC
) -> Callable[[], Machine]:
    image = GuestImage(kernel, "tiny", "quiet", None)
    return lambda: loop_thread.run(
        lambda: Machine(spec, image, system, loop_thread.loop, console=lambda data: None)
    )


@pytest.mark.parametrize("fails", ["vcpu", "slot", "check", "kernel"])
def test_a_failed_construction_leaves_nothing(
    loop_thread: Any, regions: list[Region], fails: str
) -> None:
    system = FailingSystem(fails)

    with pytest.raises(MinivmmError):
        construct(loop_thread, system, b"no kernel")()

    assert [vm.closed for vm in system.vms] == [True]
    assert len(regions) == 3
    assert [region.size for region in regions] == [0, 0, 0]


def test_a_file_that_is_no_kernel_is_named(loop_thread: Any) -> None:
    with pytest.raises(ImageError, match="tiny: not a kernel but a text file"):
        construct(loop_thread, FakeSystem(), b"no kernel")()


def test_memory_that_the_host_refuses_leaves_nothing(
    loop_thread: Any, regions: list[Region], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_the_last(size: int, *more: Any) -> Region:
        if size == 2 * GIB:
            raise HostError("cannot map 2G of guest memory")
        made = Region(size, *more)
        regions.append(made)
        return made

    monkeypatch.setattr(board, "Region", refuse_the_last)
    system = FakeSystem()

    with pytest.raises(HostError, match="cannot map 2G"):
        construct(loop_thread, system, b"")()

    assert [vm.closed for vm in system.vms] == [True]
    assert [region.size for region in regions] == [0, 0]


def test_a_machine_that_cannot_be_laid_out_never_opens_a_vm(
    loop_thread: Any, regions: list[Region]
) -> None:
    system = FakeSystem()

    with pytest.raises(UsageError):
        construct(loop_thread, system, b"", MachineSpec(memory=MIB))()

    assert system.vms == []
    assert regions == []


def assert_gone(rig: Any, regions: list[Region]) -> None:
    assert rig.vm.closed
    assert not any(region.size for region in regions)
    assert not any(thread.name.startswith("vcpu") for thread in threading.enumerate())


def never_started(rig: Any) -> None: ...


def running(rig: Any) -> None:
    rig.start()


def paused(rig: Any) -> None:
    rig.start()
    rig.locked(rig.machine.pause)


def quitted(rig: Any) -> None:
    rig.start()
    rig.locked(rig.machine.request_quit)


def powered_off(rig: Any) -> None:
    rig.vcpus[1].script_out(SLEEP_CONTROL_PORT, b"\x34")
    rig.start()
    assert rig.outcome


def broken(rig: Any) -> None:
    rig.vcpus[1].script_shutdown()
    rig.start()
    assert rig.outcome


def busy(rig: Any) -> None:
    for vcpu in rig.vcpus:
        vcpu.script_out(SERIAL_PORT, b"x" * 4000)
        for _ in range(500):
            vcpu.script_out(SERIAL_PORT, b"x")
    rig.start()


@pytest.mark.parametrize(
    "state", [never_started, running, paused, quitted, powered_off, broken, busy]
)
def test_close_in_any_state(
    make_rig: Any, regions: list[Region], state: Callable[[Any], None]
) -> None:
    rig = make_rig(cpus=4)
    state(rig)

    rig.close()

    assert_gone(rig, regions)
    rig.close()  # harmless
    assert_gone(rig, regions)


def test_close_while_a_vcpu_is_in_device_code(make_rig: Any, regions: list[Region]) -> None:
    rig = make_rig()
    entered, leave = threading.Event(), threading.Event()

    def stall(data: bytes) -> None:
        entered.set()
        assert leave.wait(5)

    rig.machine.board.serial._output = stall
    rig.vcpus[0].script_out(SERIAL_PORT, b"x")
    rig.start()
    assert entered.wait(5)

    threading.Timer(0.02, leave.set).start()
    rig.close()

    assert_gone(rig, regions)


def test_a_reset_that_was_due_is_not_done_after_close(make_rig: Any) -> None:
    rig = make_rig()

    def request_and_close() -> None:
        with rig.loop.lock:
            rig.machine.request_reset()
        rig.machine.close()

    rig.thread.run(request_and_close)
    rig.thread.settle()

    assert rig.events == []
    assert rig.vm.irqchip_resets == 0
    assert len(rig.vcpus[0].states) == 1


def test_requests_after_close_do_nothing(make_rig: Any) -> None:
    rig = make_rig()
    rig.start()
    rig.close()

    rig.locked(rig.machine.request_reset)
    rig.thread.settle()

    assert rig.vm.irqchip_resets == 0
