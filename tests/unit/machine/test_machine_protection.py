"""Guests that touch unplugged memory: found through faults and MMIO exits, treated as told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.kvm.abi import EXIT_EFAULT, Cap
from minivmm.memory.region import Access
from minivmm.protection import EVENT
from minivmm.testing import fake_kvm
from minivmm.units import GIB, MIB

BLOCK = 2 * MIB


class Guarded:
    """A machine with a device of 4 GiB; blocks 0 and 2 are plugged, as a guest would have it."""

    def __init__(self, make_rig: Callable[..., Any], protect: str, **options: Any) -> None:
        device = VirtioMemSpec(size=4 * GIB, block_size=BLOCK, protect=protect)
        self.rig = make_rig(devices=(device,), **options)
        self.machine = self.rig.machine
        self.device = self.machine.memory_devices["vmem0"]
        self.base = self.device.window.base
        self.lines: list[str] = []
        self.machine.on_warning.append(self.lines.append)
        self.plug(0, 1)
        self.plug(2, 1)

    def plug(self, first: int, count: int) -> None:
        """What a PLUG request does, without a driver."""
        offset, length = first * BLOCK, count * BLOCK
        self.device.region.protect(offset, length, Access.ALL)
        self.machine.board.memory.plug(self.device.slot, offset, length)
        self.device.state.blocks.plug(first, count)

    def unplug(self, first: int, count: int) -> None:
        """What an UNPLUG request does."""
        offset, length = first * BLOCK, count * BLOCK
        self.machine.board.memory.unplug(self.device.slot, offset, length)
        if self.device.spec.protect != "off":
            self.device.region.protect(offset, length, Access.NONE)
        self.device.state.blocks.unplug(first, count)
        self.device.intruders.unplugged(first, count, 0.0)

    def memslots(self) -> list[tuple[int, int]]:
        """(offset in blocks, blocks) of the region's memslots."""
        slots = self.rig.vm.slots.values()
        return sorted(
            ((slot.gpa - self.base) // BLOCK, slot.size // BLOCK)
            for slot in slots
            if slot.gpa >= self.base
        )

    @property
    def found(self) -> list[Any]:
        return list(self.device.intruders.recent)


@pytest.fixture
def guarded(make_rig: Any) -> Guarded:
    return Guarded(make_rig, "report")


def test_a_fault_in_a_memslot_is_narrowed_down_and_named(guarded: Guarded) -> None:
    cpu = guarded.rig.vcpus[0]
    cpu.rip = 0xFFFF_FFFF_8100_0000
    assert guarded.memslots() == [(0, 512)]
    cpu.script_mmio_write(guarded.base + 8, 8, 0x1122)
    cpu.script_mmio_write(guarded.base + BLOCK + 16, 4, 0xDEAD)
    unplugged = cpu.script_mmio_read(guarded.base + BLOCK + 16, 4)
    plugged = cpu.script_mmio_read(guarded.base + 8, 8)

    guarded.rig.start()

    assert cpu.wait_idle()
    assert guarded.memslots() == [(0, 1), (2, 1)]
    assert (unplugged.value, plugged.value) == (0, 0x1122)
    assert [(i.vcpu, i.rip, i.gpa, i.size, i.write, i.block) for i in guarded.found] == [
        (0, cpu.rip, guarded.base + BLOCK + 16, 4, True, 1),
        (0, cpu.rip, guarded.base + BLOCK + 16, 4, False, 1),
    ]
    assert guarded.rig.machine.stats.exits["fault"] == 1
    assert guarded.machine.state == "running"


def test_an_access_outside_of_memslots_is_named_without_a_fault(guarded: Guarded) -> None:
    cpu = guarded.rig.vcpus[0]
    answer = cpu.script_mmio_read(guarded.base + 2 * GIB, 8)

    guarded.rig.start()

    assert cpu.wait_idle()
    assert answer.value == 0
    assert [i.block for i in guarded.found] == [1024]
    assert guarded.memslots() == [(0, 512)]


def test_report_says_so_once_a_second_and_tells_qmp(guarded: Guarded) -> None:
    cpu = guarded.rig.vcpus[0]
    for at in range(40):
        cpu.script_mmio_write(guarded.base + BLOCK + 8 * at, 8, at)

    guarded.rig.start()

    assert cpu.wait_idle()
    assert guarded.device.intruders.count == 40
    first, end = guarded.base + BLOCK, guarded.base + 2 * BLOCK - 1
    assert guarded.lines[0] == (
        f"vmem0: cpu0 at rip 0x1000 wrote 8 bytes at gpa {first:#x}: block 1"
        f" ({first:#x}-{end:#x}) is not plugged, not lately either"
    )
    data = guarded.rig.wait_for_event(EVENT)
    assert (data["id"], data["cpu-index"], data["rip"]) == ("vmem0", 0, 0x1000)
    assert (data["gpa"], data["size"], data["write"], data["block"]) == (first, 8, True, 1)
    assert data["qom-path"] == "/machine/peripheral/vmem0"
    assert len(guarded.lines) == guarded.rig.names().count(EVENT) == 1


def test_later_reports_count_what_was_not_reported(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minivmm.protection.REPORT_INTERVAL", 0.05)
    cpu = guarded.rig.vcpus[0]
    for at in range(3):
        cpu.script_mmio_write(guarded.base + BLOCK, 8, at)
    guarded.rig.start()
    assert cpu.wait_idle()
    said = len(guarded.lines)
    while len(guarded.lines) == said:
        cpu.script_mmio_write(guarded.base + BLOCK, 8, 9)
        assert cpu.wait_idle()

    unreported = [d["unreported"] for n, d in guarded.rig.events if n == EVENT]
    assert sum(unreported) + len(unreported) == guarded.device.intruders.count
    assert f"and {unreported[-1]} other accesses since the last report" in guarded.lines[-1]


def test_stop_pauses_and_the_guest_can_go_on(make_rig: Any) -> None:
    guarded = Guarded(make_rig, "stop")
    cpu = guarded.rig.vcpus[0]
    cpu.script_mmio_write(guarded.base + BLOCK, 8, 1)
    after = cpu.script_mmio_read(guarded.base, 8)

    guarded.rig.start()

    guarded.rig.wait_for_event("STOP")
    assert guarded.machine.state == "paused"
    assert guarded.rig.names() == [EVENT, "STOP"]
    assert len(guarded.lines) == 1
    assert after.value is None
    guarded.rig.locked(guarded.machine.resume)
    assert cpu.wait_idle()
    assert after.value == 0


def test_kill_ends_the_guest_with_the_line(make_rig: Any) -> None:
    guarded = Guarded(make_rig, "kill", cpus=2)
    cpu = guarded.rig.vcpus[1]
    guarded.unplug(2, 1)
    cpu.script_mmio_read(guarded.base + 2 * BLOCK, 4)

    guarded.rig.start()

    assert guarded.rig.outcome.state == "guest-panicked"
    assert guarded.rig.outcome.died
    assert guarded.rig.outcome.reason == f"vmem0: {guarded.found[0]}"
    assert "cpu1" in guarded.rig.outcome.reason and " s ago" in guarded.rig.outcome.reason
    assert guarded.rig.names() == [EVENT, "SHUTDOWN"]
    assert guarded.rig.events[-1][1] == {"guest": True, "reason": "guest-panic"}


def test_off_counts_what_it_sees_and_says_nothing(make_rig: Any) -> None:
    guarded = Guarded(make_rig, "off")
    cpu = guarded.rig.vcpus[0]
    cpu.script_mmio_write(guarded.base + BLOCK, 8, 7)
    unseen = cpu.script_mmio_read(guarded.base + BLOCK, 8)
    cpu.script_mmio_write(guarded.base + 3 * GIB, 8, 7)

    guarded.rig.start()

    assert cpu.wait_idle()
    assert unseen.value == 7, "in a range in use, nothing is found without protect="
    assert [i.gpa for i in guarded.found] == [guarded.base + 3 * GIB]
    assert guarded.lines == [] and guarded.rig.names() == []
    assert any("intrusion" in line for line in guarded.machine.inspect()["events"])


def test_a_block_that_was_unplugged_after_narrowing_is_found_as_well(guarded: Guarded) -> None:
    cpu = guarded.rig.vcpus[0]
    cpu.script_mmio_write(guarded.base + BLOCK, 8, 1)
    guarded.rig.start()
    assert cpu.wait_idle()

    guarded.rig.locked(lambda: guarded.plug(4, 2), lambda: guarded.unplug(5, 1))
    cpu.script_mmio_write(guarded.base + 5 * BLOCK, 8, 1)
    assert cpu.wait_idle()

    assert guarded.memslots() == [(0, 1), (2, 1), (4, 1)]
    assert [i.block for i in guarded.found] == [1, 5]
    assert guarded.found[0].age is None and guarded.found[1].age is not None


def test_all_vcpus_may_fault_at_once(make_rig: Any) -> None:
    guarded = Guarded(make_rig, "report", cpus=4)
    for cpu in guarded.rig.vcpus:
        for at in range(20):
            cpu.script_mmio_write(guarded.base + BLOCK + 8 * at, 8, 1)
            cpu.script_mmio_write(guarded.base + 8 * (20 * cpu.index + at), 8, cpu.index + 1)

    guarded.rig.start()

    assert all(cpu.wait_idle() for cpu in guarded.rig.vcpus)
    assert guarded.device.intruders.count == 80
    values = guarded.device.region.view(0, 640).cast("Q").tolist()
    assert values == [1] * 20 + [2] * 20 + [3] * 20 + [4] * 20


@pytest.mark.parametrize("protect", ["off", "report"])
def test_a_fault_for_another_reason_ends_the_machine(make_rig: Any, protect: str) -> None:
    guarded = Guarded(make_rig, protect)
    for _ in range(3):
        guarded.rig.vcpus[0].script_exit(EXIT_EFAULT)

    guarded.rig.start()

    assert guarded.rig.outcome.state == "internal-error"
    assert "prealloc=on" in guarded.rig.outcome.reason
    assert "cpu0" in guarded.rig.outcome.reason
    assert "\n" not in guarded.rig.outcome.reason


def test_a_passing_fault_is_survived(guarded: Guarded) -> None:
    cpu = guarded.rig.vcpus[0]
    cpu.script_exit(EXIT_EFAULT)
    answer = cpu.script_mmio_read(guarded.base, 8)

    guarded.rig.start()

    assert cpu.wait_idle()
    assert answer.value == 0
    assert guarded.found == []


def test_too_many_pieces_end_the_machine_and_say_so(
    make_rig: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = fake_kvm._CAPABILITIES | {Cap.NR_MEMSLOTS: 16}
    monkeypatch.setattr(fake_kvm, "_CAPABILITIES", few)
    guarded = Guarded(make_rig, "report")
    for block in range(4, 60, 2):
        guarded.plug(block, 1)
    guarded.rig.vcpus[0].script_mmio_write(guarded.base + BLOCK, 8, 1)

    guarded.rig.start()

    assert guarded.rig.outcome.state == "internal-error"
    assert "in more pieces than KVM has memslots (16)" in guarded.rig.outcome.reason


def test_narrowing_and_pause_do_not_disturb_each_other(make_rig: Any) -> None:
    guarded = Guarded(make_rig, "report")
    cpu = guarded.rig.vcpus[0]
    guarded.rig.start()
    guarded.rig.locked(guarded.machine.pause)
    cpu.script_mmio_write(guarded.base + BLOCK, 8, 1)
    assert not cpu.wait_idle(0.05)

    guarded.rig.locked(guarded.machine.resume)
    guarded.rig.locked(guarded.machine.pause)
    guarded.rig.locked(guarded.machine.resume)

    assert cpu.wait_idle()
    assert [i.block for i in guarded.found] == [1]


def test_narrowing_and_reset_do_not_disturb_each_other(guarded: Guarded) -> None:
    cpu = guarded.rig.vcpus[0]
    guarded.rig.start()

    cpu.script_mmio_write(guarded.base + BLOCK, 8, 1)
    guarded.rig.locked(guarded.machine.request_reset)
    guarded.rig.wait_for_event("RESET")

    assert cpu.wait_idle()
    assert guarded.device.plugged_size == 0
    assert guarded.memslots() == []


def test_inspect_shows_memslots_and_intrusions(guarded: Guarded) -> None:
    tree = guarded.machine.inspect()

    assert tree["memslots"] == {
        "count": 2,
        "limit": 32764,
        "range-size": GIB,
        "covered": GIB,
    }
    model = tree["board"]["devices"]["vmem0"]["model"]
    assert model["intrusions"] == {"count": 0, "recent": []}
