"""What a machine tells a diagnosis, and guests whose addresses are narrower than the host's."""

from __future__ import annotations

from typing import Any

import pytest

from minivmm.devices.virtio_mem.diagnosis import Kind, diagnose
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.errors import UsageError
from minivmm.spec.virtio import DeviceStatus
from minivmm.units import GIB, MIB

LEAF_ADDRESS_SIZES = 0x8000_0008
FAR = 1 << 36


def test_a_view_has_what_board_and_machine_know(make_rig: Any) -> None:
    rig = make_rig(online="offline")
    rig.start()

    around = rig.machine.view("vmem0").around
    rig.locked(rig.machine.pause)
    paused = rig.machine.view("vmem0").around

    assert around.status == DeviceStatus(0)
    assert around.phys_bits == 48
    assert around.boot_end == 64 * MIB
    assert around.online == "offline"
    assert around.pci_address == "0000:00:02.0"
    assert (around.running, paused.running) == (True, False)
    assert diagnose(rig.machine.view("vmem0")).kind is Kind.NO_DRIVER


def test_the_guests_cpus_have_the_bits_asked_for(make_rig: Any) -> None:
    rig = make_rig(phys_bits=36, cpus=2, devices=(VirtioMemSpec(size=GIB, memaddr=FAR),))

    for vcpu in rig.vcpus:
        leaf = next(entry for entry in vcpu.cpuid if entry.function == LEAF_ADDRESS_SIZES)
        assert leaf.eax & 0xFF == 36
    assert diagnose(rig.machine.view("vmem0")).kind is Kind.NOT_ADDRESSABLE
    assert len(rig.machine.board.address_map.warnings()) == 1


def test_more_bits_than_the_host_has_are_refused(make_rig: Any) -> None:
    with pytest.raises(UsageError, match="phys-bits 52 is more than this host's 48: use 48"):
        make_rig(phys_bits=52)
