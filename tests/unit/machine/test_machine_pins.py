"""Pins of a whole machine: from a device's ISR to KVM's interrupt line, and across a reset."""

from __future__ import annotations

from typing import Any

from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.spec.virtio_pci import CapabilityType
from minivmm.units import GIB, MIB

GSI = 18
"""Slot 2, behind the host bridge and the console (spec/platform.py)."""


def test_a_resize_drives_the_line_of_a_device_without_vectors(make_rig: Any) -> None:
    rig = make_rig(devices=(VirtioMemSpec(size=GIB, vectors=0),))
    driver = rig.start_driver()

    rig.locked(lambda: rig.machine.memory_devices["vmem0"].set_requested_size(256 * MIB))
    assert rig.vm.irq_lines[GSI] is True
    rig.locked(lambda: driver.read(CapabilityType.ISR, 0, 1))

    assert rig.vm.irq_lines[GSI] is False
    assert rig.vm.irqfds == set()


def test_a_system_reset_releases_the_lines(make_rig: Any, wait: Any) -> None:
    rig = make_rig(devices=(VirtioMemSpec(size=GIB, vectors=0),))
    rig.start_driver()
    rig.locked(lambda: rig.machine.memory_devices["vmem0"].set_requested_size(256 * MIB))
    rig.start()

    rig.locked(rig.machine.request_reset)

    rig.wait_for_event("RESET")
    assert rig.vm.irq_lines[GSI] is False
