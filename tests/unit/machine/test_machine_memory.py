"""Memory of a whole machine: KVM's slots are guest memory, and no map at boot tells of devices."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from minivmm.boot import places
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.spec.bootparams import BootParams
from minivmm.spec.e820 import E820Entry, E820Type
from minivmm.units import GIB, MIB

BIG = {
    "memory": 4 * GIB,
    "devices": (
        VirtioMemSpec(id="a", size=3 * GIB),
        VirtioMemSpec(id="b", size=GIB, memaddr=64 * GIB),
    ),
}


@pytest.fixture(params=["small", "big"])
def any_rig(request: pytest.FixtureRequest, make_rig: Any) -> Any:
    return make_rig(**(BIG if request.param == "big" else {}))


def test_memslots_are_ram_and_nothing_of_the_devices(any_rig: Any) -> None:
    slots = {(slot.gpa, slot.size, slot.hva) for slot in any_rig.vm.slots.values()}

    assert slots == {
        (slot.gpa, slot.region.size, slot.region.hva)
        for slot in any_rig.machine.board.memory.slots
        if slot.occupancy is None
    }
    assert sum(size for _, size, _ in slots) == any_rig.spec.memory == any_rig.machine.boot_memory
    assert not any(slot.readonly for slot in any_rig.vm.slots.values())


def test_plugged_memory_is_shown_to_kvm(any_rig: Any) -> None:
    memory = any_rig.machine.board.memory
    before = set(any_rig.vm.slots)

    for sparse in (slot for slot in memory.slots if slot.occupancy is not None):
        memory.plug(sparse, 0, 2 * MIB)
        memory.plug(sparse, 64 * MIB, 2 * MIB)

    shown = {any_rig.vm.slots[number].gpa for number in set(any_rig.vm.slots) - before}
    assert shown == {device.window.base for device in any_rig.machine.memory_devices.values()}


def test_a_memslot_goes_some_time_after_the_last_block(
    rig: Any, wait: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minivmm.memslots.LINGER", 0.05)
    memory, slot = rig.machine.board.memory, rig.machine.memory_devices["vmem0"].slot
    before = rig.machine.memslots
    rig.start()

    with rig.loop.lock:
        memory.plug(slot, 0, 2 * MIB)
        memory.unplug(slot, 0, 2 * MIB)
        assert rig.machine.memslots == before + 1

    wait(lambda: rig.machine.memslots == before)


def test_slots_can_have_huge_pages(any_rig: Any) -> None:
    for slot in any_rig.vm.slots.values():
        assert slot.gpa % (2 * MIB) == slot.hva % (2 * MIB)


def boot_map(rig: Any) -> list[E820Entry]:
    params = rig.machine.board.memory.load(places.ZERO_PAGE, BootParams)
    size = E820Entry.SIZE
    table = bytes(params.e820_table)
    return [
        E820Entry.parse(table[at : at + size]) for at in range(0, size * params.e820_entries, size)
    ]


def test_the_kernel_learns_of_no_device_region_at_boot(any_rig: Any) -> None:
    entries = boot_map(any_rig)

    assert entries
    for device in any_rig.machine.memory_devices.values():
        window = device.window
        for entry in entries:
            assert entry.base + entry.size <= window.base or window.end <= entry.base


def test_the_boot_map_is_the_ram_there_is(any_rig: Any) -> None:
    entries = boot_map(any_rig)
    slots = [(slot.gpa, slot.gpa + slot.size) for slot in any_rig.vm.slots.values()]

    for before, after in pairwise(entries):
        assert before.base + before.size <= after.base
    ram = [entry for entry in entries if entry.type == E820Type.RAM]
    for entry in ram:
        assert any(start <= entry.base <= entry.base + entry.size <= end for start, end in slots)
    lost = any_rig.spec.memory - sum(entry.size for entry in ram)
    assert 0 <= lost < MIB


def test_memory_costs_nothing_until_used(make_rig: Any) -> None:
    rig = make_rig(devices=(VirtioMemSpec(size=1024 * GIB),))

    device = rig.machine.memory_devices["vmem0"]

    assert device.region.resident_in(0, GIB) == 0
