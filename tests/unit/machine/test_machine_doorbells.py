"""Doorbells, messages and deferred work of a whole machine: driven as Linux drives virtio-mem."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.spec.platform import FIRST_MSI_GSI
from minivmm.spec.virtio_mem import MemRequest, MemResponse, RequestType
from minivmm.spec.virtio_pci import CapabilityType
from minivmm.testing.driver import MESSAGE_ADDRESS
from minivmm.units import GIB, MIB


class Guest:
    """A virtio-mem driver on the machine's own buses; it rings by its vCPU."""

    def __init__(self, rig: Any) -> None:
        self.rig = rig
        self.device = rig.machine.memory_devices["vmem0"]
        self.driver = rig.start_driver()
        with rig.loop.lock:
            self.doorbell = self.driver.address(CapabilityType.NOTIFY)

    def add_plug(self, block: int) -> None:
        address = self.device.window.base + block * self.device.block_size
        request = MemRequest(type=RequestType.PLUG, addr=address, nb_blocks=1)
        self.driver.queues[0].add((request.build(),), (MemResponse.SIZE,))

    def ring(self) -> None:
        self.rig.vcpus[0].script_mmio_write(self.doorbell, 2, 0)


@pytest.fixture
def guest(make_rig: Any) -> Guest:
    """Its doorbell is KVM's."""
    return Guest(
        make_rig(devices=(VirtioMemSpec(size=GIB, requested_size=256 * MIB, ioeventfd=True),))
    )


def test_the_answer_is_there_when_the_cpu_goes_on_unless_kvm_takes_the_doorbell(rig: Any) -> None:
    """Drivers of virtio-mem wait for each answer: this way they need not sleep."""
    guest = Guest(rig)
    assert rig.vm.ioeventfds.keys().isdisjoint({(guest.doorbell, 2)})
    threads: list[threading.Thread] = []
    original = guest.device.handle_queue

    def watched(index: int, queue: Any) -> None:
        threads.append(threading.current_thread())
        original(index, queue)

    guest.device.handle_queue = watched
    rig.locked(lambda: guest.device.set_requested_size(2 * MIB))
    guest.add_plug(0)
    guest.ring()

    rig.start()

    assert rig.vcpus[0].wait_idle()
    assert [used.written for used in guest.driver.queues[0].collect()] == [MemResponse.SIZE]
    assert rig.machine.stats.exits == {"mmio write": 1}
    assert [thread.name for thread in threads] == ["vcpu0"]


def test_a_doorbell_is_served_on_the_loop_without_an_exit(guest: Guest, wait: Any) -> None:
    rig = guest.rig
    threads: list[threading.Thread] = []
    original = guest.device.handle_queue

    def watched(index: int, queue: Any) -> None:
        threads.append(threading.current_thread())
        original(index, queue)

    guest.device.handle_queue = watched
    guest.add_plug(0)
    guest.ring()

    rig.start()

    wait(lambda: guest.device.plugged_size == 2 * MIB)
    assert rig.machine.stats.exits == {}
    assert set(threads) == {rig.thread.thread}
    assert [used.written for used in guest.driver.queues[0].collect()] == [MemResponse.SIZE]


def test_its_interrupt_is_a_routed_message(guest: Guest, wait: Any) -> None:
    guest.add_plug(0)
    guest.ring()

    guest.rig.start()

    wait(lambda: guest.rig.vm.irqfds)
    ((fd, gsi),) = guest.rig.vm.irqfds
    assert gsi >= FIRST_MSI_GSI
    assert guest.rig.vm.routes == {gsi: (MESSAGE_ADDRESS, 1)}
    wait(lambda: os.eventfd_read(fd) == 1)


def test_a_doorbell_of_another_width_is_an_exit_and_rings_nothing(guest: Guest) -> None:
    guest.add_plug(0)
    guest.rig.vcpus[0].script_mmio_write(guest.doorbell, 4, 0)

    guest.rig.start()

    assert guest.rig.vcpus[0].wait_idle()
    assert guest.rig.machine.stats.exits["mmio write"] == 1
    guest.rig.thread.settle()
    assert guest.device.plugged_size == 0


def test_doorbells_go_with_the_reset(guest: Guest) -> None:
    guest.rig.start()
    assert guest.rig.vm.ioeventfds

    guest.rig.locked(guest.rig.machine.request_reset)
    guest.rig.wait_for_event("RESET")

    assert guest.rig.vm.ioeventfds == {}


def test_a_ring_right_before_close_does_nothing(guest: Guest) -> None:
    guest.add_plug(0)
    rig = guest.rig

    def ring_and_close() -> None:
        rig.vm.ring(guest.doorbell, 2)
        rig.machine.close()

    rig.thread.run(ring_and_close)
    rig.thread.settle()

    assert guest.device.plugged_size == 0


def test_deferred_work_ends_with_the_machine(guest: Guest, wait: Any) -> None:
    rounds: list[int] = []

    def endless(index: int, queue: Any) -> None:
        rounds.append(index)
        guest.device.signals.kick(index)

    guest.device.handle_queue = endless
    guest.ring()
    guest.rig.start()
    wait(lambda: len(rounds) > 10)

    guest.rig.close()
    done = len(rounds)
    guest.rig.thread.settle()

    assert len(rounds) == done
