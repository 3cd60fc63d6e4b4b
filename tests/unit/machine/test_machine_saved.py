"""A machine's state as sections: taken from one, loaded into another, which goes on from there."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import pytest

from minivmm.errors import BadState, HostError
from minivmm.guest_image import GuestImage
from minivmm.saved import Section
from minivmm.snapshot.machine import (
    VERSION,
    load_machine,
    load_memory_devices,
    save_machine,
    save_memory_devices,
)
from minivmm.spec.platform import RESET_PORT, RESET_VALUE, SERIAL_PORT
from minivmm.testing.mem_driver import MemDriver
from minivmm.testing.tiny_kernel import tiny_image
from minivmm.units import MIB

PANIC = b"Kernel panic - not syncing: no init\r\n"
IDLE = 0.03

Take = Callable[..., list[Section]]


def still(rig: Any) -> None:
    """Have `rig` stand still."""
    came = threading.Event()
    rig.locked(lambda: rig.machine.quiesce(came.set))
    assert came.wait(5)


def take(rig: Any) -> list[Section]:
    """What is saved of `rig`, which goes on then."""
    still(rig)
    found: list[Section] = []
    rig.locked(lambda: found.extend(save_machine(rig.machine)), rig.machine.unquiesce)
    return found


@pytest.fixture
def load(make_rig: Any) -> Callable[..., Any]:
    """load(sections, **options) -> a rig that was built empty, and has loaded them."""

    def loaded(sections: list[Section], **options: Any) -> Any:
        rig = make_rig(empty=True, **options)
        rig.locked(lambda: load_machine(rig.machine, sections))
        return rig

    return loaded


@pytest.mark.parametrize("cpus", [1, 3])
def test_a_loaded_machine_saves_the_same(make_rig: Any, load: Any, cpus: int) -> None:
    rig = make_rig(cpus=cpus).start()
    for vcpu in rig.vcpus:
        vcpu.rip = 0x1234 + vcpu.index
    sections = take(rig)

    other = load(sections, cpus=cpus)

    assert [vcpu.rip for vcpu in other.vcpus] == [0x1234 + index for index in range(cpus)]
    again = {section.name: section for section in take(other)}
    changing = ("machine", "chips", "device.vmem0")  # not started; a clock; ages of what happened
    for section in sections:
        assert section.name in changing or again[section.name] == section


def test_a_machine_for_a_saved_state_is_empty(make_rig: Any) -> None:
    rig = make_rig(empty=True)

    assert rig.vcpus[0].states == [None]
    memory = rig.machine.board.memory
    assert all(slot.region.usage().resident == 0 for slot in memory.slots)


def test_it_goes_on_when_it_is_started(rig: Any, load: Any) -> None:
    other = load(take(rig.start()))
    other.vcpus[0].script_out(SERIAL_PORT, b"x")
    assert other.machine.state == "prelaunch"
    assert not other.vcpus[0].wait_idle(IDLE)

    other.start()

    assert other.machine.state == "running"
    assert other.vcpus[0].wait_idle()
    assert other.vcpus[0].debug.pauses == 1
    assert other.names() == []


def test_a_paused_machine_goes_on_paused(rig: Any, load: Any) -> None:
    rig.start().locked(rig.machine.pause)

    other = load(take(rig)).start()

    assert other.machine.state == "paused"
    other.vcpus[0].script_out(SERIAL_PORT, b"x")
    assert not other.vcpus[0].wait_idle(IDLE)
    other.locked(other.machine.resume)
    assert other.vcpus[0].wait_idle()


def test_a_running_machine_may_be_started_frozen(rig: Any, load: Any) -> None:
    other = load(take(rig.start()))

    other.locked(lambda: other.machine.start(frozen=True))

    assert other.machine.state == "paused"
    other.locked(other.machine.resume)
    assert other.machine.state == "running"


def test_one_that_had_not_begun_begins_there(rig: Any, load: Any) -> None:
    rig.locked(lambda: rig.machine.start(frozen=True))

    other = load(take(rig)).start()

    assert other.machine.state == "prelaunch"
    other.locked(other.machine.resume)
    assert other.machine.state == "running"


def test_a_reset_that_waited_is_done_there(rig: Any, load: Any) -> None:
    rig.start()
    still(rig)
    rig.locked(rig.machine.request_reset)
    sections: list[Section] = []
    rig.locked(lambda: sections.extend(save_machine(rig.machine)))

    other = load(sections).start()

    other.wait_for_event("RESET")
    assert len(other.vcpus[0].states) == 2
    other.vcpus[0].script_out(SERIAL_PORT, b"x")
    assert other.vcpus[0].wait_idle()
    rig.locked(rig.machine.unquiesce)


def test_its_image_is_wanted_at_a_reset_only(rig: Any, make_rig: Any) -> None:
    made: list[GuestImage] = []

    def make() -> GuestImage:
        made.append(tiny_image())
        return made[0]

    sections = take(rig.start())
    other = make_rig(empty=True, image=make)
    other.locked(lambda: load_machine(other.machine, sections))
    other.start()
    assert made == []

    other.locked(other.machine.request_reset)

    other.wait_for_event("RESET")
    assert len(made) == 1
    assert other.vcpus[0].states[-1] is not None


def test_a_panic_is_still_one_there(rig: Any, load: Any) -> None:
    rig.start()
    for byte in PANIC:
        rig.vcpus[0].script_out(SERIAL_PORT, bytes((byte,)))
    assert rig.vcpus[0].wait_idle()

    other = load(take(rig))
    other.vcpus[0].script_out(RESET_PORT, bytes((RESET_VALUE,)))
    other.start()

    assert other.outcome.state == "guest-panicked"
    assert "no init" in other.outcome.reason


def test_plugged_memory_is_plugged_there(rig: Any, load: Any) -> None:
    device = rig.machine.memory_devices["vmem0"]
    rig.locked(lambda: device.set_requested_size(128 * MIB))
    rig.start().locked(lambda: MemDriver(device).plug(3, 5))

    other = load(take(rig))

    there = other.machine.memory_devices["vmem0"]
    assert there.plugged_size == device.plugged_size > 0
    assert there.requested_size == 128 * MIB
    assert [*there.state.plugged_ranges(0, there.window.size)] == [
        *device.state.plugged_ranges(0, device.window.size)
    ]
    assert other.machine.memslots == rig.machine.memslots


def test_memory_devices_can_come_early(rig: Any, make_rig: Any) -> None:
    device = rig.machine.memory_devices["vmem0"]
    rig.start().locked(lambda: MemDriver(device).plug(0, 2))
    early: list[Section] = []
    rig.locked(lambda: early.extend(save_memory_devices(rig.machine)))
    other = make_rig(empty=True)

    other.locked(lambda: load_memory_devices(other.machine, early))

    assert other.machine.memory_devices["vmem0"].plugged_size == device.plugged_size > 0
    sections = take(rig)
    other.locked(lambda: load_machine(other.machine, sections))
    assert other.machine.memory_devices["vmem0"].plugged_size == device.plugged_size
    assert other.start().machine.state == "running"


# -- what does not make sense ----------------------------------------------------------------------


@pytest.fixture
def empty(make_rig: Any) -> Any:
    return make_rig(empty=True)


@pytest.fixture
def sections(rig: Any) -> list[Section]:
    return take(rig.start())


def refusal(rig: Any, sections: list[Section]) -> str:
    with pytest.raises((BadState, HostError)) as error:
        rig.locked(lambda: load_machine(rig.machine, sections))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_section_has_to_be_there_once(empty: Any, sections: list[Section]) -> None:
    for at, section in enumerate(sections):
        missing = refusal(empty, sections[:at] + sections[at + 1 :])
        assert missing == f"saved state of machine: section {section.name}: it is missing"
    assert "section cpu0: it is there twice" in refusal(
        empty, [*sections, next(one for one in sections if one.name == "cpu0")]
    )
    alien = Section("device.disk0", VERSION, b"")
    assert "section device.disk0: this machine has no such part" in refusal(
        empty, [*sections, alien]
    )


def test_a_section_of_a_later_version_is_refused(empty: Any, sections: list[Section]) -> None:
    later = [dataclasses.replace(one, version=VERSION + 1) for one in sections]

    assert f"version {VERSION + 1}: this minivmm reads version {VERSION}" in refusal(empty, later)


def test_no_cut_section_is_overlooked(empty: Any, sections: list[Section]) -> None:
    for at, section in enumerate(sections):
        for data in {section.data[:-1], section.data + b"\0"} - {section.data}:
            if not section.data and not data:
                continue
            changed = [*sections]
            changed[at] = dataclasses.replace(section, data=data)
            refusal(empty, changed)


def test_a_state_that_no_machine_has_is_refused(empty: Any, sections: list[Section]) -> None:
    odd = [
        dataclasses.replace(one, data=b"\x07" + one.data[1:]) if one.name == "machine" else one
        for one in sections
    ]

    assert "saved state of machine: state 7: 0 prelaunch, 1 running" in refusal(empty, odd)
