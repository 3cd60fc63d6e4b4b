"""Pins of a whole machine: from a device's ISR to KVM's interrupt line, and across a reset."""

from __future__ import annotations

from typing import Any

from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.spec.virtio_pci import CapabilityType
from minivmm.testing.buffers import GuestAllocator
from minivmm.testing.driver import VirtioPciDriver
from minivmm.testing.fake_irq import FakeDefer, FakeDoorbells
from minivmm.units import GIB, MIB

GSI = 18
"""Slot 2, behind the host bridge and the console (spec/platform.py)."""


def start_driver(rig: Any) -> VirtioPciDriver:
    board = rig.machine.board
    slot = next(f.slot for f in board.functions if f.device.identifier == "vmem0")
    allocator = GuestAllocator(board.memory, 40 * MIB, 44 * MIB)
    driver = VirtioPciDriver(
        board.mmio, board.memory, allocator, slot, doorbells=FakeDoorbells(), defer=FakeDefer()
    )
    rig.locked(driver.start)
    return driver


def test_a_resize_drives_the_line_of_a_device_without_vectors(make_rig: Any) -> None:
    rig = make_rig(devices=(VirtioMemSpec(size=GIB, vectors=0),))
    driver = start_driver(rig)

    rig.locked(lambda: rig.machine.memory_devices["vmem0"].set_requested_size(256 * MIB))
    assert rig.vm.irq_lines[GSI] is True
    rig.locked(lambda: driver.read(CapabilityType.ISR, 0, 1))

    assert rig.vm.irq_lines[GSI] is False
    assert rig.vm.irqfds == set()


def test_a_system_reset_releases_the_lines(make_rig: Any, wait: Any) -> None:
    rig = make_rig(devices=(VirtioMemSpec(size=GIB, vectors=0),))
    start_driver(rig)
    rig.locked(lambda: rig.machine.memory_devices["vmem0"].set_requested_size(256 * MIB))
    rig.start()

    rig.locked(rig.machine.request_reset)

    rig.wait_for_event("RESET")
    assert rig.vm.irq_lines[GSI] is False
