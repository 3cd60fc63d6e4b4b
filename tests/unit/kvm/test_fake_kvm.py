"""The fake has KVM's faces and manners, so what runs on it runs on KVM."""

from __future__ import annotations

import os
import threading

import pytest

from minivmm.errors import HostError
from minivmm.kvm import abi
from minivmm.kvm.hypervisor import Hypervisor
from minivmm.memory.region import Access, Region
from minivmm.testing.fake_kvm import FakeSystem, FakeVcpu, FakeVm


@pytest.fixture
def vm() -> FakeVm:
    return FakeSystem().create_vm()


@pytest.fixture
def cpu(vm: FakeVm) -> FakeVcpu:
    return vm.create_vcpu(0)


def test_it_has_the_hypervisors_face() -> None:
    system = FakeSystem()
    face: Hypervisor = system

    vm = face.create_vm()
    vcpu = vm.create_vcpu(0)

    assert system.vms == [vm]
    assert system.vms[0].vcpus == [vcpu]
    assert face.check(abi.Cap.XSAVE2) == 4096


def test_cpuid_is_a_plausible_host() -> None:
    leaves = {leaf.function: leaf for leaf in FakeSystem().supported_cpuid()}

    assert leaves[0x4000_0000].ebx.to_bytes(4, "little") == b"KVMK"
    assert leaves[1].ecx >> 31 == 1  # HYPERVISOR
    assert leaves[0x8000_0008].eax & 0xFF == 48
    assert leaves[0x8000_0001].edx >> 29 & 1  # long mode


def test_out_looks_as_from_kvm(cpu: FakeVcpu) -> None:
    cpu.script_out(0x3F8, b"abcd", size=2)

    reason = cpu.run()

    assert reason == cpu.run_page.exit_reason == abi.Exit.IO
    assert (cpu.io.direction, cpu.io.port, cpu.io.size, cpu.io.count) == (1, 0x3F8, 2, 2)
    assert bytes(cpu.io_data()) == b"abcd"


def test_memory_in_a_slot_is_accessed_without_an_exit(vm: FakeVm, cpu: FakeVcpu) -> None:
    region = Region(0x2000)
    vm.set_memory_region(0, 0x10000, 0x2000, region.hva)
    cpu.script_mmio_write(0x10008, 4, 0x1234_5678)
    answer = cpu.script_mmio_read(0x10008, 4)
    cpu.script_shutdown()

    assert cpu.run() == abi.Exit.SHUTDOWN
    assert answer.value == 0x1234_5678
    assert bytes(region.view(8, 4)) == b"\x78\x56\x34\x12"
    region.close()


@pytest.mark.parametrize(("access", "readable"), [(Access.NONE, False), (Access.READ, True)])
def test_forbidden_memory_in_a_slot_faults_until_it_is_allowed(
    vm: FakeVm, cpu: FakeVcpu, access: Access, readable: bool
) -> None:
    region = Region(0x2000)
    vm.set_memory_region(0, 0x10000, 0x2000, region.hva)
    region.protect(0, 0x1000, access)
    answer = cpu.script_mmio_read(0x10000, 8)
    cpu.script_mmio_write(0x10000, 8, 7)
    cpu.script_shutdown()

    assert cpu.run() == abi.EXIT_EFAULT
    assert (answer.value == 0) is readable
    assert cpu.run() == abi.EXIT_EFAULT
    region.protect(0, 0x1000, Access.ALL)
    assert cpu.run() == abi.Exit.SHUTDOWN
    assert answer.value == 0
    assert bytes(region.view(0, 1)) == b"\x07"
    region.close()


def test_in_is_answered_when_the_guest_goes_on(cpu: FakeVcpu) -> None:
    answer = cpu.script_in(0x3FD)
    cpu.script_shutdown()

    cpu.run()
    cpu.io_data()[:] = b"\x60"
    assert answer.value is None
    assert cpu.run() == abi.Exit.SHUTDOWN

    assert answer.value == 0x60


def test_mmio_write_and_read(cpu: FakeVcpu) -> None:
    cpu.script_mmio_write(0xC000_0014, 2, 0xABCD_1234)
    answer = cpu.script_mmio_read(0xC000_0018, 4)

    assert cpu.run() == abi.Exit.MMIO
    assert (cpu.mmio.phys_addr, cpu.mmio.len, cpu.mmio.is_write) == (0xC000_0014, 2, 1)
    assert cpu.mmio_value() == 0x1234
    assert cpu.run() == abi.Exit.MMIO
    assert not cpu.mmio.is_write
    cpu.set_mmio_value(0x1_2345_6789)
    cpu.finish_access()

    assert answer.value == 0x2345_6789


def test_a_kick_before_run_is_kept_and_served_once(cpu: FakeVcpu) -> None:
    cpu.script_shutdown()

    cpu.kick()
    cpu.kick()

    assert [cpu.run(), cpu.run()] == [abi.Exit.INTR, abi.Exit.SHUTDOWN]


def test_at_the_end_of_the_script_run_waits_for_a_kick(cpu: FakeVcpu) -> None:
    reasons: list[int] = []
    thread = threading.Thread(target=lambda: reasons.append(cpu.run()))
    thread.start()
    thread.join(0.02)
    assert thread.is_alive()

    cpu.kick()
    thread.join(5)

    assert reasons == [abi.Exit.INTR]


def test_halt_waits_for_a_kick_and_the_script_goes_on(cpu: FakeVcpu) -> None:
    cpu.script_halt()
    cpu.script_shutdown()
    timer = threading.Timer(0.02, cpu.kick)
    timer.start()

    assert [cpu.run(), cpu.run()] == [abi.Exit.INTR, abi.Exit.SHUTDOWN]
    timer.join()


def test_a_script_may_grow_while_the_guest_waits(cpu: FakeVcpu) -> None:
    timer = threading.Timer(0.02, cpu.script_shutdown)
    timer.start()

    assert cpu.run() == abi.Exit.SHUTDOWN
    timer.join()


def test_idle_means_that_the_last_exit_was_served(cpu: FakeVcpu) -> None:
    cpu.script_out(0x80, b"x")
    assert not cpu.wait_idle(0)
    cpu.run()
    assert not cpu.wait_idle(0)
    cpu.kick()

    cpu.run()

    assert cpu.wait_idle(0)


def test_initialise_and_reset_are_recorded(cpu: FakeVcpu) -> None:
    cpuid = FakeSystem().supported_cpuid()

    cpu.initialise(cpuid, None)
    cpu.reset(None)

    assert cpu.cpuid == cpuid
    assert cpu.states == [None, None]


def test_efault_and_other_plain_exits(cpu: FakeVcpu) -> None:
    cpu.script_exit(abi.EXIT_EFAULT)

    assert cpu.run() == abi.EXIT_EFAULT


def test_an_impossible_access_is_a_mistake_of_the_test(cpu: FakeVcpu) -> None:
    with pytest.raises(ValueError, match="3 bytes"):
        cpu.script_mmio_read(0, 3)
    with pytest.raises(ValueError, match="items of 2"):
        cpu.script_out(0, b"abc", size=2)


def test_a_doorbell_takes_the_write_without_an_exit(vm: FakeVm, cpu: FakeVcpu) -> None:
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    vm.set_ioeventfd(fd, 0xC000_3000, 2)
    cpu.script_mmio_write(0xC000_3000, 2, 0)
    cpu.script_mmio_write(0xC000_3000, 4, 0)  # not its length

    assert cpu.run() == abi.Exit.MMIO
    assert cpu.mmio.len == 4
    assert os.eventfd_read(fd) == 1
    os.close(fd)


def test_slots_are_kept_and_deleted(vm: FakeVm) -> None:
    vm.set_memory_region(3, 0x1000, 0x2000, 0x10000, readonly=True)

    assert vm.slots[3].gpa == 0x1000
    assert vm.slots[3].readonly
    vm.set_memory_region(3, 0x1000, 0, 0)
    assert vm.slots == {}


@pytest.mark.parametrize(
    ("slot", "gpa", "size"),
    [(1, 0x2000, 0x1000), (0, 0, 0x1000), (1, 0x8001, 0x1000), (7, 0, 0)],
    ids=["overlap", "resize", "not pages", "delete nothing"],
)
def test_slots_are_refused_as_by_kvm(vm: FakeVm, slot: int, gpa: int, size: int) -> None:
    vm.set_memory_region(0, 0, 0x3000, 0x10000)

    with pytest.raises(HostError, match=f"slot {slot}"):
        vm.set_memory_region(slot, gpa, size, 0x20000)


def test_doorbells_are_refused_as_by_kvm(vm: FakeVm) -> None:
    vm.set_ioeventfd(5, 0x1000, 2)

    with pytest.raises(HostError, match="already"):
        vm.set_ioeventfd(6, 0x1000, 0)
    with pytest.raises(HostError, match="no such"):
        vm.set_ioeventfd(6, 0x1000, 2, assign=False)
    vm.set_ioeventfd(6, 0x1000, 4)
    vm.set_ioeventfd(5, 0x1000, 2, assign=False)
    assert vm.ioeventfds == {(0x1000, 4): 6}


def test_interrupt_wiring_is_recorded(vm: FakeVm) -> None:
    vm.set_irqfd(5, 24)
    vm.set_irqfd(6, 25)
    vm.set_routes({24: (0xFEE0_0000, 0x41)})
    vm.set_irq_line(4, True)
    vm.set_irqfd(6, 25, assign=False)
    vm.reset_irqchips()
    vm.close()

    assert vm.irqfds == {(5, 24)}
    assert vm.routes == {24: (0xFEE0_0000, 0x41)}
    assert vm.irq_lines == {4: True}
    assert vm.irqchip_resets == 1
    assert vm.closed
    with pytest.raises(HostError, match="fd 5 is used"):
        vm.set_irqfd(5, 26)
